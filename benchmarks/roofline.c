/* What this machine can do at most with the instructions the kernels are made of: everything in registers, chains
 * long enough to hide latency. Prints one line of JSON: operations per second of all threads together.
 *
 *   roofline THREADS
 *
 * multiply-adds mod 2^64:
 *   avx2     vpmuludq + vpmulld + vpaddq + vpaddd for four (the cross sums are folded once, at the end)
 *   avx512   vpmullq + vpaddq for eight
 *   avx512x  the avx2 mix on vectors of eight
 * AES-128 blocks: ten vaesenc-like rounds and one xor, on vectors of one, two and four blocks.
 */
#include <immintrin.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

enum { CHAINS = 12, LOOPS = 1 << 20, TRIES = 5, MAX_THREADS = 256 };
#define KEEP(x) __asm__ volatile("" : "+v"(x))

static double seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static volatile uint64_t sink;

/* 6 accumulators of each kind are what 16 registers hold. */
__attribute__((target("avx2"))) static uint64_t mac_avx2(void) {
  __m256i low[6], cross[6], x = _mm256_set1_epi64x(0x123456789abcdef), y = _mm256_set1_epi64x(0x3456789abcdef01);
  for (int i = 0; i < 6; ++i) low[i] = cross[i] = _mm256_set1_epi64x(i);
  for (int n = 0; n < LOOPS; ++n) {
#pragma GCC unroll 6
    for (int i = 0; i < 6; ++i) {
      KEEP(x);
      low[i] = _mm256_add_epi64(low[i], _mm256_mul_epu32(x, y));
      cross[i] = _mm256_add_epi32(cross[i], _mm256_mullo_epi32(x, y));
    }
  }
  for (int i = 0; i < 6; ++i) sink += (uint64_t)_mm256_extract_epi64(_mm256_add_epi64(low[i], cross[i]), 0);
  return (uint64_t)LOOPS * 6 * 4;
}

#define F512 "avx512f,avx512dq,avx512bw,avx512vl"

__attribute__((target(F512))) static uint64_t mac_avx512(void) {
  __m512i a[CHAINS], x = _mm512_set1_epi64(0x123456789abcdef), y = _mm512_set1_epi64(0x3456789abcdef01);
  for (int i = 0; i < CHAINS; ++i) a[i] = _mm512_set1_epi64(i);
  for (int n = 0; n < LOOPS; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; ++i) {
      KEEP(x);
      a[i] = _mm512_add_epi64(a[i], _mm512_mullo_epi64(x, y));
    }
  }
  for (int i = 0; i < CHAINS; ++i) sink += (uint64_t)_mm512_reduce_add_epi64(a[i]);
  return (uint64_t)LOOPS * CHAINS * 8;
}

__attribute__((target(F512))) static uint64_t mac_avx512x(void) {
  __m512i low[CHAINS], cross[CHAINS];
  __m512i x = _mm512_set1_epi64(0x123456789abcdef), y = _mm512_set1_epi64(0x3456789abcdef01);
  for (int i = 0; i < CHAINS; ++i) low[i] = cross[i] = _mm512_set1_epi64(i);
  for (int n = 0; n < LOOPS; ++n) {
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; ++i) {
      KEEP(x);
      low[i] = _mm512_add_epi64(low[i], _mm512_mul_epu32(x, y));
      cross[i] = _mm512_add_epi32(cross[i], _mm512_mullo_epi32(x, y));
    }
  }
  for (int i = 0; i < CHAINS; ++i) sink += (uint64_t)_mm512_reduce_add_epi64(_mm512_add_epi64(low[i], cross[i]));
  return (uint64_t)LOOPS * CHAINS * 8;
}

#define AES(NAME, TARGET, VEC, LANES, SET, ROUND, XOR, OUT)                    \
  __attribute__((target(TARGET))) static uint64_t NAME(void) {                 \
    VEC s[8], k = SET(0x1234567);                                              \
    for (int i = 0; i < 8; ++i) s[i] = SET(i);                                 \
    for (int n = 0; n < LOOPS / 8; ++n) {                                      \
      for (int r = 0; r < 10; ++r) {                                           \
        _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) s[i] = ROUND(s[i], k); \
      }                                                                        \
      _Pragma("GCC unroll 8") for (int i = 0; i < 8; ++i) s[i] = XOR(s[i], k); \
    }                                                                          \
    for (int i = 0; i < 8; ++i) sink += (uint64_t)OUT(s[i]);                   \
    return (uint64_t)LOOPS / 8 * 8 * LANES;                                    \
  }

#define OUT1(v) _mm_cvtsi128_si64(v)
#define OUT2(v) _mm_cvtsi128_si64(_mm256_castsi256_si128(v))
#define OUT4(v) _mm_cvtsi128_si64(_mm512_castsi512_si128(v))
AES(aes_1, "aes,sse4.1", __m128i, 1, _mm_set1_epi64x, _mm_aesenc_si128, _mm_xor_si128, OUT1)
AES(aes_2, "avx2,aes,vaes", __m256i, 2, _mm256_set1_epi64x, _mm256_aesenc_epi128, _mm256_xor_si256, OUT2)
AES(aes_4, F512 ",aes,vaes", __m512i, 4, _mm512_set1_epi64, _mm512_aesenc_epi128, _mm512_xor_si512, OUT4)

struct job {
  uint64_t (*work)(void);
  pthread_barrier_t *start;
  uint64_t done;
};

static void *play(void *arg) {
  struct job *j = arg;
  pthread_barrier_wait(j->start);
  j->done = j->work();
  return NULL;
}

static double rate(uint64_t (*work)(void), int threads) {
  double best = 0;
  work(); /* clocks up */
  for (int t = 0; t < TRIES; ++t) {
    pthread_t ids[MAX_THREADS];
    struct job jobs[MAX_THREADS];
    pthread_barrier_t start;
    pthread_barrier_init(&start, NULL, (unsigned)threads + 1);
    for (int i = 0; i < threads; ++i) {
      jobs[i] = (struct job){work, &start, 0};
      if (pthread_create(&ids[i], NULL, play, &jobs[i])) exit(1);
    }
    const double from = seconds();
    pthread_barrier_wait(&start);
    uint64_t done = 0;
    for (int i = 0; i < threads; ++i) {
      pthread_join(ids[i], NULL);
      done += jobs[i].done;
    }
    const double r = (double)done / (seconds() - from);
    if (r > best) best = r;
    pthread_barrier_destroy(&start);
  }
  return best;
}

int main(int argc, char **argv) {
  const int threads = argc > 1 ? atoi(argv[1]) : 1;
  if (threads < 1 || threads > MAX_THREADS) return 2;
  const int wide = __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  const int vaes = __builtin_cpu_supports("vaes");
  printf("{\"threads\": %d, \"mac\": {", threads);
  if (__builtin_cpu_supports("avx2")) printf("\"avx2\": %.4g", rate(mac_avx2, threads));
  if (wide) printf(", \"avx512\": %.4g, \"avx512x\": %.4g", rate(mac_avx512, threads), rate(mac_avx512x, threads));
  printf("}, \"aes\": {");
  if (__builtin_cpu_supports("aes")) printf("\"avx2\": %.4g", rate(aes_1, threads));
  if (vaes) printf(", \"vaes\": %.4g", rate(aes_2, threads));
  if (vaes && wide) printf(", \"avx512\": %.4g", rate(aes_4, threads));
  printf("}}\n");
  return 0;
}
