"""Two owners and a torch model that is defined, and briefly trained, right here.

What happens: a startup trains a small network on the cohort's training patients. Then a hospital brings
X-rays of eight test patients and a laboratory their bloods; startup and hospital evaluate the network
together, a helper deals the masks, and the patients' agent receives the answers.

Who sees what: each owner its own input, the startup its weights, the agent the eight answers, startup and
hospital masked values, the helper its own masks. Two of those three together could undo the masks.

The patients are synthetic: X-ray and bloods are real, but of two different people, joined by a simulated
outcome. That the network does well on them says nothing about medicine.
"""

import torch
from cohort.cohort import RANGES, Cohort, load

import privinfer


class Network(torch.nn.Module):
    """A convolution over the X-ray, a layer over the bloods, one answer from both."""

    def __init__(self) -> None:
        super().__init__()
        self.picture = torch.nn.Sequential(
            torch.nn.Conv2d(1, 4, 6, stride=3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(256, 8)
        )
        self.tests = torch.nn.Linear(24, 8)
        self.head = torch.nn.Linear(16, 1)

    def forward(self, xray: torch.Tensor, blood: torch.Tensor) -> torch.Tensor:
        """Logits (batch, 1); the names of the arguments are those of the inputs."""
        return self.head(torch.relu(torch.cat([self.picture(xray), self.tests(blood)], 1)))


def train(patients: Cohort, steps: int = 60) -> Network:
    torch.manual_seed(0)
    network = Network()
    xray, blood, y = (torch.as_tensor(a).float() for a in (patients.xray, patients.blood, patients.y))
    optimiser = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(steps):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(xray, blood)[:, 0], y).backward()
        optimiser.step()
    return network


def main() -> None:
    network = train(load("train"))
    shapes = {"xray": (1, 1, 28, 28), "blood": (1, 24)}
    model = privinfer.from_torch(network, shapes, {k: RANGES[k] for k in shapes}, outputs=["risk"])
    test = load("test", n=8)
    inputs = {"hospital": {"xray": test.xray}, "laboratory": {"blood": test.blood}}
    result = privinfer.run_local(model, inputs, model_owner="startup", receiver="agent")
    with torch.no_grad():
        clear = network.double()(torch.as_tensor(test.xray), torch.as_tensor(test.blood)).numpy()
    print("synthetic patient  private logit  logit by torch")
    for k, (private, by_torch) in enumerate(zip(result.outputs["risk"][:, 0], clear[:, 0], strict=True)):
        print(f"{k:17d}  {private:13.6f}  {by_torch:14.6f}")
    print(f"declared bound of the difference: {result.report['precision']['declared_error_bound']:.1e}")
    print(result.report["trust"])


if __name__ == "__main__":
    main()
