"""The cost of each row beside it: what its init is made from, and its own tuning, mean over seeds."""

import pandas as pd

from pewe.reporting.stored import INIT, TUNING, Stored

HEADS = {INIT: "init", TUNING: "tuning"}
MEASURES = ("lines", "updates", "seconds")


def cost_table(stored: Stored) -> pd.DataFrame:
    """Rows of the main table down, with their delta; lines, updates and seconds of init and tuning across, as text.

    A dash is a cost that the stored results do not tell; the sources have no init.
    """
    if stored.costs.empty:
        return pd.DataFrame()
    means = stored.costs.groupby(["delta", "init", "part"], sort=False)[list(MEASURES)].mean().unstack("part")
    columns = {f"{head}: {what}": means.get((what, part)) for part, head in HEADS.items() for what in MEASURES}
    shown = pd.DataFrame({name: values for name, values in columns.items() if values is not None}).reset_index("delta")
    numbers = shown.columns.drop("delta")
    order = stored.costs.drop_duplicates(["delta", "init"])[["delta", "init"]]
    text = shown.assign(**{name: shown[name].map(lambda x: "–" if pd.isna(x) else f"{x:.0f}") for name in numbers})
    return order.merge(text.reset_index(), on=["delta", "init"]).set_index("init")
