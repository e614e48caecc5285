"""Where servers listen: what has no need of torch or an engine, for the parsers' sake too."""

HOST = "127.0.0.1"
_EVERYWHERE = {"0.0.0.0": HOST, "::": "::1"}


def reached_at(host: str, port: int) -> str:
    """The URL at which this machine reaches a server that listens at `host`."""
    near = _EVERYWHERE.get(host, host)
    return f"http://[{near}]:{port}" if ":" in near else f"http://{near}:{port}"
