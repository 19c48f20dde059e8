from tests.adversarial.clean import nothing_left

__all__ = ["nothing_left"]
