"""The closed form of an image–text model as a few lines for people."""

from typing import Any

KNOWN = ("map", "parts", "pairs", "patients", "folds", "dims")  # without these it is not what `choice` wrote


def shown(alignment: dict[str, Any]) -> dict[str, Any]:
    """The lines of a summary or checkpoint about the closed form and the return; other facts as they are."""
    if any(name not in alignment for name in KNOWN):
        return alignment
    strengths = alignment.get("regularisation", {})
    by_map = ", ".join(f"{name} {value:g}" for name, value in strengths.items() if value is not None)
    lines = {
        "map": f"{alignment['map']}, regularised by {by_map}; {alignment['dims']} dimensions",
        **{f"{name} code": ", ".join(parts) for name, parts in alignment["parts"].items()},
        "pairs": f"{alignment['pairs']:,} of {alignment['patients']:,} patients",
    }
    if alignment.get("mean_log_rank") is None:
        lines["chosen by"] = alignment.get("rule", "")
    else:
        score = f"{alignment['mean_log_rank']:.3f} ± {alignment['standard_error']:.3f}"
        lines["chosen by"] = f"mean log rank {score} in {alignment['folds']} folds"
    return lines | (_return(alignment["cycle"]) if alignment.get("cycle") else {})


def _return(cycle: dict[str, Any]) -> dict[str, str]:
    gain = "" if cycle["gain_on_folds"] is None else f"{100 * cycle['gain_on_folds']:+.1f} % on folds"
    settings = (
        f"plan entropy {cycle['entropy']:g}, partners {cycle['partners']:g}, weight {cycle['weight']:.2f}, "
        f"{cycle['rounds']} round{'s' * (cycle['rounds'] != 1)}"
    )
    if cycle["kept"] == "return":
        asked = "" if cycle["rule"] != "always" else ", as cycle_rule=always asks"
        return {"return": f"accepted{asked}{gain and f', {gain}'}", "completed by": settings}
    why = f"it gives {gain}" if gain else cycle["rule"]
    return {"return": f"closed form kept: {why}"}
