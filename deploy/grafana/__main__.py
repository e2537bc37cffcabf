"""Write the dashboards: `python -m deploy.grafana`, after a change of what builds them."""

from __future__ import annotations

from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from deploy.grafana import service, shift

FOLDER = Path(__file__).with_name("dashboards")


def dashboards() -> dict[Path, str]:
    """Each dashboard's file and text."""
    encoder = JSONEncoder(sort_keys=True, indent=1)
    return {
        FOLDER / f"{name}.json": encoder.encode(board.build()) + "\n"
        for name, board in (("service", service.build()), ("shift", shift.build()))
    }


if __name__ == "__main__":
    for path, text in dashboards().items():
        path.write_text(text)
        print(path)
