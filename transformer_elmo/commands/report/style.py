"""How the report looks: one hue, from what was expected to what was not, by day and by night."""

BITS_PER_SHADE = 2

# A colour and that of text on it, for 0 to 2 bits, 2 to 4 bits, ..., and everything beyond. Each
# text is readable on its colour: a contrast of at least 4.5.
Shades = list[tuple[str, str]]

BY_DAY: Shades = [
    ("#f0f5fb", "#1b2733"),
    ("#dde9f5", "#1b2733"),
    ("#c6dbef", "#1b2733"),
    ("#9ecae1", "#1b2733"),
    ("#72b2d8", "#1b2733"),
    ("#4f9bcb", "#101a24"),
    ("#2069a8", "#ffffff"),
    ("#08498c", "#ffffff"),
    ("#072a5c", "#ffffff"),
]
BY_NIGHT: Shades = [
    ("#1a222b", "#dfe7ee"),
    ("#172e45", "#dfe7ee"),
    ("#17395a", "#e6edf3"),
    ("#184a78", "#f0f4f8"),
    ("#225f97", "#ffffff"),
    ("#5b9fd6", "#081420"),
    ("#84b8e4", "#081420"),
    ("#b0d3f0", "#081420"),
    ("#deedfa", "#081420"),
]


def shade_of(bits: float) -> int:
    """The number of a surprisal's shade."""
    darkest = len(BY_DAY) - 1
    return int(min(max(bits, 0.0) / BITS_PER_SHADE, darkest))


def style() -> str:
    """The page's style sheet."""
    return (
        f":root {{ {_DAY} }}\n{_shades(BY_DAY)}\n"
        f"@media (prefers-color-scheme: dark) {{\n:root {{ {_NIGHT} }}\n{_shades(BY_NIGHT)}\n}}\n"
        f"{_LAYOUT}"
    )


def _shades(shades: Shades) -> str:
    return "\n".join(
        f".b{number} {{ background: {colour}; color: {text}; }}"
        for number, (colour, text) in enumerate(shades)
    )


_DAY = (
    "color-scheme: light dark; --back: #fff; --text: #1b2733; --muted: #56616d; --line: #d5dce3; "
    "--raised: #fff; --bar: #2069a8; --mark: #b4430b"
)
_NIGHT = (
    "--back: #10151a; --text: #dfe7ee; --muted: #9aa7b4; --line: #2e3944; --raised: #1c252e; "
    "--bar: #5b9fd6; --mark: #f0a06a"
)

# The numbers under a word aren't in the flow, so that a copy of the words is a line of words.
#
# The detail of a word is laid under its line, as wide as the sentence at most: it has a left and a
# right but no top, so it stands where it would have stood in the text, and can't leave the page.
_LAYOUT = """\
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 60rem; padding: 1rem 1rem 3rem; background: var(--back);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
h3 { font-size: 1rem; margin: 0; }
p { margin: .5rem 0; max-width: 44rem; }
.muted, small { color: var(--muted); }
.remark { border-inline-start: .25rem solid var(--mark); padding-inline-start: .75rem; }
code { font: .9em/1.5 ui-monospace, monospace; }
.num { font-variant-numeric: tabular-nums; }

dl { margin: 0; }
dl > div { display: grid; grid-template-columns: 17rem 1fr; gap: 0 1rem; padding: .3rem 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--muted); }
dd { margin: 0; font-variant-numeric: tabular-nums; }
dd small { margin-inline-start: .5rem; }

.scale { display: flex; flex-wrap: wrap; align-items: center; gap: .25rem; margin: .75rem 0; }
.scale .n { min-width: 3.6rem; }
.sentence { border-top: 1px solid var(--line); margin-top: 1.25rem; padding-top: .75rem; }
.sentence > header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 .75rem; }
.words { position: relative; margin: .5rem 0; line-height: 1.9rem; }
.w, .c { display: inline-block; max-width: 100%; border-radius: .3rem; vertical-align: bottom; }
.w { margin: .2rem .1rem .3rem; }
.c { position: relative; min-width: 2.6rem; padding-bottom: 1.5rem; text-align: center; }
.two .c { padding-bottom: 3rem; }
.c > bdi { padding: 0 .15rem; font-size: 1.15rem; }
.n { padding: 0 .3rem; font-size: .8rem; line-height: 1.5rem; text-align: center;
  font-variant-numeric: tabular-nums; user-select: none; -webkit-user-select: none;
  print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.c > .n { position: absolute; left: 0; right: 0; bottom: 0; border-radius: .3rem; }
.two .lower { border-radius: 0 0 .3rem .3rem; }
.two .upper { border-radius: .3rem .3rem 0 0; bottom: 1.5rem; }
.none { color: var(--muted); }
.key { margin-inline-end: .2rem; }
.key .c { width: 9rem; user-select: none; -webkit-user-select: none; }
.key .n { padding: 0; color: var(--muted); text-align: start; }
.edge bdi { color: var(--muted); font-size: .8rem; }
.edge bdi, .outside { user-select: none; -webkit-user-select: none; }
.outside { color: var(--mark); line-height: 1; }

.w[tabindex] { cursor: help; }
.w[tabindex]:hover, .w:focus { outline: 2px solid var(--text); outline-offset: 1px; }
.d { display: none; position: absolute; left: 0; right: 0; z-index: 1; width: fit-content;
  min-width: min(100%, 26rem); max-width: min(100%, 34rem);
  margin: .4rem auto 0; padding: .5rem .75rem; text-align: start;
  font-size: .9rem; line-height: 1.45; background: var(--raised); color: var(--text);
  border: 1px solid var(--muted); border-radius: .4rem; box-shadow: 0 .3rem 1rem #0005; }
.w:focus > .d { display: block; }
.w:hover > .d { display: block; z-index: 2; }
/* One at a time: what is pointed at goes before what was chosen. */
.words:has(.w:hover) .w:focus:not(:hover) > .d { display: none; }
/* It must not keep the pointer from the words that it covers. */
.w:hover:not(:focus) > .d { pointer-events: none; }
.d span { display: block; }
.d bdi { display: inline-block; max-width: 100%; }
.d .title { font-size: 1.05rem; font-weight: 700; }
.d .views { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin-top: .35rem; }
.d .view { flex: 1 1 9rem; min-width: 0; }
.d .view > span:first-child { font-weight: 700; }
.d .top { display: flex; justify-content: space-between; gap: .75rem;
  font-variant-numeric: tabular-nums; }
.d .top > :first-child { min-width: 0; }
.d .top > span { white-space: nowrap; }
.d .here { font-weight: 700; }

.mixture { border-top: 1px solid var(--line); margin-top: 1.25rem; padding-top: .75rem; }
.mixture table { border-collapse: collapse; width: 100%; max-width: 44rem; margin: .5rem 0; }
.mixture th { font-weight: 400; text-align: start; white-space: nowrap; width: 1%; }
.mixture th, .mixture td { padding: .2rem .75rem .2rem 0; }
.mixture .num { white-space: nowrap; width: 1%; }
.mixture .track { position: relative; padding-right: 0; }
.bar { display: block; height: 1.1rem; min-width: 1px; background: var(--bar);
  border-radius: 0 .2rem .2rem 0; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.even { position: absolute; top: 0; bottom: 0; border-inline-start: 2px dashed var(--text); }

@media (max-width: 36rem) {
  dl > div { grid-template-columns: 1fr; }
  .results > div { grid-template-columns: 10rem 1fr; }
}
@media print {
  .d { display: none !important; }
  body { padding: 0; max-width: none; }
}
"""
