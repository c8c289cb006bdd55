"""What is measured of a release while it serves."""

import msgspec


class Vitals(msgspec.Struct, frozen=True, kw_only=True):
    """What a model in service did over some time.

    errors, slow   requests that failed, and that took longer than the profile's p99 budget
    odd            rows whose output is not finite, or is no probability
    longest_s      that a request which is not answered yet has been running, seconds
    """

    requests: int = 0
    errors: int = 0
    slow: int = 0
    rows: int = 0
    odd: int = 0
    longest_s: float = 0.0

    def __add__(self, other: "Vitals") -> "Vitals":
        return Vitals(
            requests=self.requests + other.requests,
            errors=self.errors + other.errors,
            slow=self.slow + other.slow,
            rows=self.rows + other.rows,
            odd=self.odd + other.odd,
            longest_s=max(self.longest_s, other.longest_s),
        )
