# The figures of hack/bench as tab-separated lines: what was measured, against whom, and whether the goal is met.
def rounded: (. * 1000 | round) / 1000;
def ratio: if .peer_value then (.value / .peer_value | rounded) else null end;
def met: if .goal_ratio then ratio <= .goal_ratio elif .goal_ratio_least then ratio >= .goal_ratio_least elif .goal then .value <= .goal else null end;

(["benchmark", "value", "unit", "peer", "peer's value", "ratio", "goal", "met"]),
(.[] | [
    .name,
    (.value | rounded),
    .unit,
    (.peer // "-"),
    (if .peer_value then .peer_value | rounded else "-" end),
    (ratio // "-"),
    (if .goal_ratio then "ratio ≤ \(.goal_ratio)" elif .goal_ratio_least then "ratio ≥ \(.goal_ratio_least)" elif .goal then "≤ \(.goal)" else "-" end),
    (met | if . == null then "-" elif . then "yes" else "NO" end)
]) | @tsv
