# Copyright 2026 The trl_ext authors. Licensed under the Apache License, Version 2.0.
"""The frame of a page: its head, policy and style sheet, for light and dark screens of any width."""

__all__ = ["PAGE", "STYLE"]

STYLE = """
:root { color-scheme: light dark; --ink: #1c2128; --page: #ffffff; --soft: #f3f5f8; --line: #d5dae1; --faint: #565f6b;
  --good: #0b6e44; --bad: #b42318; --before: #b4500b; --after: #1d5fd1; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e9ee; --page: #14171c; --soft: #1e232a; --line: #363d47; --faint: #a3adba;
    --good: #4ccb92; --bad: #ff8a7d; --before: #f5a05f; --after: #7fb0ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; color: var(--ink); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: .4rem 0 .6rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .5rem; overflow-wrap: anywhere; }
.lead { font-size: 1.15rem; max-width: 62rem; margin: 0 0 1rem; overflow-wrap: anywhere; }
.note { max-width: 62rem; margin: 0 0 .8rem; color: var(--faint); white-space: pre-wrap; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: 0 0 1rem; }
a { color: var(--after); }
:focus-visible { outline: 2px solid var(--after); outline-offset: 2px; }
.tiles { list-style: none; margin: 0; padding: 0; display: grid; gap: .8rem;
  grid-template-columns: repeat(auto-fill, minmax(min(15.5rem, 100%), 1fr)); }
.tiles li { padding: .7rem .9rem; background: var(--soft); border-radius: .5rem; min-width: 0; }
.tiles h3 { margin: 0; font-size: .9rem; font-weight: 600; }
.value { font-size: 1.35rem; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.value .unit { font-size: .85rem; }
.value .old, .value .to { color: var(--faint); }
.small { color: var(--faint); font-size: .85rem; }
.goal { font-size: .85rem; font-weight: 600; margin-top: .2rem; }
.passed { color: var(--good); } .failed { color: var(--bad); font-weight: 600; }
.scroll { overflow-x: auto; margin-bottom: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem .3rem 0; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
th, .unit, .label { color: var(--faint); font-weight: normal; font-size: .85rem; }
.texts th { text-align: left; }
.texts td { text-align: left; white-space: pre-wrap; overflow-wrap: anywhere; vertical-align: top; font-size: .85rem; }
.texts td:first-child { min-width: 9rem; max-width: 18rem; }
.plots { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
.plots.large { grid-template-columns: repeat(auto-fill, minmax(min(30rem, 100%), 1fr)); }
figure { margin: 0; padding: .7rem; background: var(--soft); border-radius: .5rem; min-width: 0; }
figure h3 { margin: 0 0 .3rem; font-size: 1rem; }
figure svg { display: block; width: 100%; height: auto; max-width: 40rem; margin: 0 auto; }
figcaption p { margin: .3rem 0 0; font-size: .85rem; color: var(--faint); overflow-wrap: anywhere; }
.sample { margin: 0 0 .8rem; padding: .6rem .8rem; background: var(--soft); border-radius: .5rem; }
.pair { display: grid; gap: .5rem 1.2rem; grid-template-columns: 1fr 1fr; }
.pair > div { border-left: 3px solid var(--after); padding-left: .6rem; min-width: 0; }
.pair > .before { border-color: var(--before); }
.text { white-space: pre-wrap; overflow-wrap: anywhere; max-height: 16rem; overflow-y: auto; }
.prompt { color: var(--faint); }
.empty { color: var(--faint); font-style: italic; }
details { margin: .8rem 0; } summary { cursor: pointer; padding: .2rem 0; font-weight: 600; }
summary .unit { font-weight: normal; }
code { font-size: .92em; }
pre { margin: .3rem 0 1rem; padding: .6rem .8rem; background: var(--soft); border-radius: .5rem; white-space: pre-wrap;
  overflow-wrap: anywhere; font-size: .85rem; }
@media (max-width: 40rem) { .pair { grid-template-columns: 1fr; } .wide { display: none; }
  th, td { padding-right: .5rem; font-size: .9rem; } .texts td:first-child { min-width: 6.5rem; max-width: 10rem; } }
@media print { figure, .sample, .tiles li { break-inside: avoid; } }
"""

PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""
