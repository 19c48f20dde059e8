"""One owner, who is also the receiver: a laboratory asks for a second opinion on its bloods.

What happens: a startup trains a small network on admission bloods (did the person die in hospital?). A
laboratory wants its answers for other people without showing the bloods. It takes no part in the work
between: startup and a cloud evaluate, a university deals the masks, and the laboratory sends masked
values at the start and receives masked answers at the end.

Who sees what: the laboratory its bloods and the answers, the startup its weights, cloud and startup masked
values, the university its own masks. Two of startup, cloud and university together could undo the masks,
so the laboratory has to believe that no two of them conspire.

The bloods are real, of one source, and nothing is linked here; but 201 people of one hospital in 2020 make
no medical model, see `cohort/ATTRIBUTION.md`.
"""

import torch
from cohort.cohort import RANGES, bloods

import privinfer


def train(x: torch.Tensor, died: torch.Tensor, steps: int = 150) -> torch.nn.Module:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 16), torch.nn.ReLU(), torch.nn.Linear(16, 1))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01, weight_decay=1e-3)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(x)[:, 0], died).backward()
        optimiser.step()
    return network


def main() -> None:
    table = bloods()
    x, train_rows, test_rows = table.standardise(table.raw), table.split == "train", table.split == "test"
    network = train(torch.as_tensor(x[train_rows]).float(), torch.as_tensor(table.died[train_rows]).float())
    model = privinfer.from_torch(
        network, {"input": (1, x.shape[1])}, {"input": RANGES["blood"]}, outputs=["died"]
    )
    result = privinfer.run_local(
        model,
        {"laboratory": {"input": x[test_rows]}},
        model_owner="startup",
        evaluators=("startup", "cloud"),
        helper="university",
        receiver="laboratory",
    )
    private = result.outputs["died"][:, 0]
    with torch.no_grad():
        clear = network.double()(torch.as_tensor(x[test_rows]))[:, 0].numpy()
    right, same = ((private > 0) == table.died[test_rows]).sum(), ((private > 0) == (clear > 0)).sum()
    print(f"{len(private)} people, {right} answers right, {same} the same as torch's")
    print(f"largest difference from torch {abs(private - clear).max():.2e}")
    print(f"declared bound {result.report['precision']['declared_error_bound']:.2e}")
    print(result.report["trust"])


if __name__ == "__main__":
    main()
