"""The known answers, one file a technique: each has ``checks() -> list[Check]``."""
