"""Genotype doors: three formats, one count of one named allele."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from privinfer import run_local
from privinfer.errors import ConfigError, InputError
from privinfer.graph.reference import run
from privinfer.io.genotypes import Genotypes
from privinfer.io.pgs import read_score
from privinfer.io.sites import Site, chromosome, complement, read_sites, sites_digest

DATA = Path(__file__).resolve().parents[1] / "data" / "doors"
VCF = DATA / "pgs000586_part_6_GRCh38.vcf.gz"
SCORE = DATA / "PGS000586_part_hmPOS_GRCh38.txt.gz"
KIDD = DATA / "kidd_10.vcf"
HEAD = (
    "##fileformat=VCFv4.2\n##contig=<ID=1,length=249250621>\n"
    "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\ta\tb\tc\n"
)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def panel_sites() -> tuple[Site, ...]:
    lines = [line.split() for line in (DATA / "panel.bim").read_text().splitlines()]
    return tuple(Site(c, int(p), a, b, rs) for c, rs, _, p, a, b in lines)


@pytest.fixture
def vcf(tmp_path):
    """Write records behind a short header; returns the path."""

    def write(*lines: str) -> Path:
        path = tmp_path / "some.vcf"
        path.write_text(HEAD + "".join(line.replace(" ", "\t") + "\n" for line in lines))
        return path

    return write


def dosages(path: Path, *sites: Site, **settings) -> list[list[float]]:
    return Genotypes(sites, "GRCh37", **settings).read(path).values.tolist()


def test_a_published_score() -> None:
    """Expected sums were computed by a script of its own."""
    score = read_score(SCORE, "GRCh38")
    record = score.door(ambiguous="forward", absent="zero").read(VCF)
    expected = [float(row["sum"]) for row in rows(DATA / "pgs000586_part_expected.csv")]
    assert np.allclose(record.values @ score.weights, expected, atol=5e-7, rtol=0)  # six decimals
    model = score.model()
    shown = run(model, {"dna": record.values})["score"]
    assert np.allclose(shown[:, 0], expected, atol=5e-7, rtol=0)
    assert (model.architecture.inputs[0].low, model.architecture.inputs[0].high) == (0, 2)
    assert str(score.weights[0]) not in repr(score) + repr(model)


@pytest.mark.slow
def test_a_published_score_between_parties() -> None:
    score = read_score(SCORE, "GRCh38")
    record = score.door(ambiguous="forward", absent="zero").read(VCF)
    model = score.model()
    result = run_local(model, {"dna_company": {"dna": record.values}})
    bound = model.architecture.precision.error_bound
    assert bound is not None
    assert bound < 0.01
    expected = [float(row["sum"]) for row in rows(DATA / "pgs000586_part_expected.csv")]
    assert np.abs(result.outputs["score"][:, 0] - expected).max() <= bound + 5e-7


def test_vcf_agrees_with_cyvcf2() -> None:
    cyvcf2 = pytest.importorskip("cyvcf2")
    for path, build in ((KIDD, "GRCh37"), (VCF, "GRCh38")):
        sites, counts = [], []
        for record in cyvcf2.VCF(str(path)):
            sites.append(Site(record.CHROM, record.POS, record.ALT[0], record.REF))
            counts.append((record.genotype.array()[:, :2] == 1).sum(1))
        found = Genotypes(tuple(sites), build, ambiguous="forward").read(path)
        assert np.array_equal(found.values, np.transpose(counts))
        assert found.names == tuple(s.name for s in sites)


def test_plink_agrees_with_bed_reader_and_with_the_text_of_a_person() -> None:
    bed_reader = pytest.importorskip("bed_reader")
    door = Genotypes(panel_sites(), "GRCh37", file_build="GRCh37", ambiguous="forward")
    record = door.read(DATA / "panel.bed")
    assert np.array_equal(record.values, bed_reader.open_bed(DATA / "panel.bed").read())
    person = door.read(DATA / "panel.bed", "NA06984")
    text = door.read(DATA / "NA06984_23andme_style.txt")
    assert np.array_equal(person.values, record.values[:1])
    assert np.array_equal(text.values, person.values)


def test_swapped_alleles_and_other_strands(vcf) -> None:
    path = vcf("1 10 . A C . . . GT 0|1 1|1 0/0", "1 20 . T C . . . GT 0|1 1|1 0/0")
    assert dosages(path, Site("1", 10, "C", "A")) == [[1], [2], [0]]
    assert dosages(path, Site("1", 10, "A", "C")) == [[1], [0], [2]]
    # G and A on the other strand are C and T here
    assert dosages(path, Site("1", 20, "G", "A"), strand="either") == [[1], [2], [0]]
    with pytest.raises(InputError, match="other alleles than the site's"):
        dosages(path, Site("1", 20, "G", "A"))
    with pytest.raises(InputError, match="other alleles than the site's"):
        dosages(path, Site("1", 20, "G", None), strand="either")
    assert dosages(path, Site("1", 20, "C", None), strand="either") == [[1], [2], [0]]


def test_ambiguous_sites(vcf) -> None:
    path = vcf("1 10 . A T . . . GT 0|1 1|1 0/0")
    site = Site("1", 10, "T", "A", frequency=0.25)
    with pytest.raises(ConfigError, match="strand cannot be told"):
        dosages(path, site)
    assert dosages(path, site, ambiguous="forward") == [[1], [2], [0]]
    # never turned over, not even where other sites may be
    assert dosages(path, site, ambiguous="forward", strand="either") == [[1], [2], [0]]
    assert dosages(path, site, ambiguous="gap", absent="mean") == [[0.5]] * 3


def test_gaps(vcf) -> None:
    path = vcf("1 10 . A C . . . GT:DP ./.:3 0/1:4 ./1:5")
    here, gone = Site("1", 10, "C", "A", frequency=0.3), Site("1", 11, "C", "A", frequency=0.1)
    with pytest.raises(InputError, match="site 1:10_C at 1:10 has no call"):
        dosages(path, here)
    assert dosages(path, here, missing="zero") == [[0], [1], [0]]
    assert dosages(path, here, missing="mean") == [[0.6], [1], [0.6]]
    with pytest.raises(InputError, match="site 1:11_C at 1:11 has no record"):
        dosages(path, gone)
    assert dosages(path, gone, absent="mean") == [[0.2]] * 3
    with pytest.raises(ConfigError, match="has no frequency"):
        dosages(path, Site("1", 10, "C", "A"), missing="mean")


def test_several_alleles_one_allele_and_haploid_men(vcf) -> None:
    path = vcf(
        "1 10 . A C,G . . . GT 1|2 2|2 0|0",
        "chrX 7 . A C . . . GT 1 0|1 0",
        "1 30 . A . . . . GT 0/0 0/0 0/0",
        "1 40 . AT A . . . GT 0/1 1/1 0/0",
        "1 40 . A G . . . GT 0/1 0/0 0/0",
    )
    sites = (
        Site("1", 10, "G", "A"),
        Site("X", 7, "C", "A"),
        Site("1", 30, "A", "C"),
        Site("1", 30, "C", "A"),
        Site("1", 40, "AT", "A"),
        Site("1", 40, "G", "A"),
    )
    assert dosages(path, *sites) == [[1, 1, 2, 0, 1, 1], [2, 1, 2, 0, 0, 0], [0, 0, 2, 0, 2, 0]]


def test_text_without_calls_and_with_indels(tmp_path) -> None:
    path = tmp_path / "raw.txt"
    path.write_text("# build 37\nrs1\t1\t10\t--\nrs2\t1\t20\tDI\nrs3\tX\t30\tG\nrs4\tMT\t40\tA\n")
    sites = (Site("1", 10, "A", "C"), Site("1", 20, "A", "AT"), Site("X", 30, "G", "A"))
    assert dosages(path, *sites, missing="zero") == [[0, 0, 1]]
    assert dosages(path, Site("MT", 40, "G", "A")) == [[0]]
    with pytest.raises(InputError, match="has no call"):
        dosages(path, sites[0])


def test_a_plink_set_that_does_not_know_an_allele(tmp_path) -> None:
    pytest.importorskip("bed_reader")
    (tmp_path / "x.fam").write_text("f p1 0 0 0 -9\nf p2 0 0 0 -9\n")
    (tmp_path / "x.bim").write_text("1 rs1 0 10 0 A\n1 rs2 0 20 C A\n")
    # two bits a person: 11 two copies of the second allele, 01 no call, 10 one of each
    (tmp_path / "x.bed").write_bytes(b"\x6c\x1b\x01" + bytes([0b0111, 0b1001]))
    sites = (Site("1", 10, "C", "A"), Site("1", 20, "C", "A"))
    found = dosages(tmp_path / "x.bed", *sites, file_build="GRCh37", missing="zero")
    assert found == [[0, 0], [0, 1]]


def test_rs_numbers_give_another_build_away(vcf) -> None:
    path = vcf("1 11 rs5 A C . . . GT 0|1 1|1 0/0", "1 10 . A C . . . GT 0|1 1|1 0/0")
    with pytest.raises(InputError, match="rs5 at another place"):
        dosages(path, Site("1", 10, "C", "A", "rs5"))


@settings(max_examples=12)
@given(st.binary(min_size=1, max_size=40), st.integers(0, 4000))
def test_damaged_files_are_input_errors(tmp_path_factory, damage: bytes, at: int) -> None:
    door = read_score(SCORE, "GRCh38").door(ambiguous="forward", absent="zero", missing="zero")
    for source, name in ((gzip.decompress(VCF.read_bytes()), "d.vcf"), (VCF.read_bytes(), "d.vcf.gz")):
        data = bytearray(source)
        data[at : at + len(damage)] = damage
        path = tmp_path_factory.getbasetemp() / name
        path.write_bytes(data)
        said = ""
        try:
            assert door.read(path).values.shape[1] == len(door.sites)
        except InputError as e:
            said = str(e)
        assert len(said) < 200  # and no line of the file in it


@given(st.text("ACGT", min_size=1, max_size=20))
def test_the_other_strand_of_the_other_strand(allele: str) -> None:
    assert complement(complement(allele)) == allele


def test_names_of_chromosomes() -> None:
    found = [chromosome(c) for c in ("chr1", "22", "chrX", "23", "chrM", "MT", "chrUn_gl0", "0", "")]
    assert found == ["1", "22", "X", "X", "MT", "MT", None, None, None]


def test_sites_from_a_file(tmp_path) -> None:
    path = tmp_path / "sites.csv"
    path.write_text("chrom,pos,effect,other,rsid,frequency\nchr1,10,A,C,rs1,0.5\n2,20,G,,,\n")
    sites = (Site("1", 10, "A", "C", "rs1", 0.5), Site("2", 20, "G"))
    assert read_sites(path) == sites
    assert sites_digest(sites) != sites_digest(sites[::-1])


def test_scores_of_either_build() -> None:
    score = read_score(DATA / "PGS000001_hmPOS_GRCh37.txt", "GRCh37")
    assert (score.identifier, len(score.sites), score.weights[0]) == ("PGS000001", 77, 0.16220388)
    assert score.sites[0] == Site("11", 69331418, "T", "C", "rs78540526")
    assert {s.chrom for s in score.only(["1", "X"]).sites} == {"1"}
    with pytest.raises(ConfigError, match="no site on these chromosomes"):
        score.only(["Y"])
