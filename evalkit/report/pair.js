  // Two runs over the same tokens. What charts.js defines is there.
  const [A, B] = D.runs, P = D.paired;
  const signed = (x, d = 4) => x === null || x === undefined ? "–" : (x > 0 ? "+" : x < 0 ? "\u2212" : "") + Math.abs(x).toFixed(d);
  const shortName = p => String(p).split("/").pop();
  page.append(el("h1", { textContent: `A: ${A.path} · B: ${B.path}` }),
    el("p", { class: "sub", textContent: `${int(A.tokens)} tokens of ${A.names.map(shortName).join(", ")}. Every difference is A less B: below 0, A is better.` }));
  const tile = (value, name, cls) => el("div", { class: "tile" }, el("b", { textContent: value, class: cls || "" }), el("span", { textContent: name }));
  const half = P.bpb_low === null ? null : (P.bpb_high - P.bpb_low) / 2;
  const shown = half === null ? "" : P.bpb_low <= 0 && P.bpb_high >= 0 ? "unsure" : P.bpb < 0 ? "good" : "bad";
  page.append(el("div", { class: "tiles" },
    tile(fix(A.bpb), "bits per byte, A"), tile(fix(B.bpb), "bits per byte, B"),
    tile(signed(P.bpb, 5), half === null ? "bits per byte, A less B" : `bits per byte, A less B, \u00b1 ${fix(half, 5)} (95%, documents as units)`, shown),
    tile(signed(P.nats_per_token, 5), "nats per token, A less B"),
    tile(`${int(P.better_documents)} of ${int(P.documents)}`, "documents in which A is better"),
    tile(A.verdict || "not checked", "legality, A"), tile(B.verdict || "not checked", "legality, B")));
  const grid = el("div", { class: "grid" }); page.append(grid);

  const S = D.stream, other = S.others.baseline;
  grid.append(wide(section("Along the stream", "Bits per byte of both runs, everything up to there; below, A less B. Thin: each of equal pieces of the stream.",
    lines("bits per byte of both runs along the stream", S.position, [
      { name: "A, up to here", y: S.running, color: "var(--s1)", width: 2.4 }, { name: "B, up to here", y: other.running, color: "var(--s2)", width: 2.4 }],
    { xName: "token", yName: "bits per byte", from: 0, height: 250 }),
    el("h3", { textContent: "The difference" }),
    lines("difference along the stream", S.position, [
      { name: "A less B, this piece", y: minus(S.local, other.local), color: "var(--s7)", width: 1.2, opacity: 0.8 },
      { name: "A less B, up to here", y: minus(S.running, other.running), color: "var(--s3)", width: 2.4 }],
    { xName: "token", yName: "bits per byte", from: 0, height: 220, withZero: true, digits: 5 }))));

  // By document
  const pts = D.documents, ys = pts.map(p => p[1]), xs = pts.map(p => Math.max(p[0], 1));
  if (pts.length) grid.append(section("By document", `Each point is one of ${int(P.documents)} documents, by length and difference. The line is the difference of the scores.`,
    el("div", {}, chart((h, w) => {
      const low = Math.min(0, ...ys), high = Math.max(0, ...ys), pad = (high - low) * 0.06 || 0.01;
      const f = frame(h, w, { label: "difference by document", logX: true, xName: "bytes of the document", yName: "bits per byte, A less B", x: [Math.max(1, Math.min(...xs) * 0.9), Math.max(...xs) * 1.1], y: [low - pad, high + pad], height: 280 });
      h.append(svg("line", { class: "zero", x1: f.L, x2: w - f.Rt, y1: f.Y(0), y2: f.Y(0) }), svg("line", { x1: f.L, x2: w - f.Rt, y1: f.Y(P.bpb), y2: f.Y(P.bpb), style: "stroke:var(--s2)", "stroke-dasharray": "5 4" }));
      pts.forEach(p => {
        const c = svg("circle", { cx: f.X(Math.max(p[0], 1)), cy: f.Y(p[1]), r: 3.5, style: `fill:var(${p[1] <= 0 ? "--s1" : "--s6"})`, "fill-opacity": 0.6 });
        c.onpointermove = e => show(`document ${p[2]}\n${int(p[0])} bytes\n${signed(p[1], 5)} bits per byte`, e); c.onpointerleave = hide; h.append(c);
      });
    }))));

  // By what a token cost
  const total = D.by_cost.reduce((s, r) => s + r.bits, 0);
  grid.append(section("By what a token cost in B", `All bits of difference, ${signed(total, 1)}, by how many bits the token cost in B: are the cheap tokens cheaper, or the dear ones?`,
    el("div", {}, chart((h, w) => {
      const v = D.by_cost.map(r => r.bits), low = Math.min(0, ...v), high = Math.max(0, ...v), pad = (high - low) * 0.06 || 0.01;
      const f = frame(h, w, { label: "difference by cost in B", xName: "bits of the token in B", yName: "bits, A less B", x: [0, v.length], y: [low - pad, high + pad], height: 280 });
      D.by_cost.forEach((r, k) => {
        const c = svg("rect", { x: f.X(k + 0.1), width: (f.X(1) - f.X(0)) * 0.8, y: Math.min(f.Y(0), f.Y(r.bits)), height: Math.abs(f.Y(0) - f.Y(r.bits)), style: `fill:var(${r.bits <= 0 ? "--s1" : "--s6"})` });
        c.onpointermove = e => show(`${r.label} bits in B\n${int(r.tokens)} tokens\n${signed(r.bits, 2)} bits`, e); c.onpointerleave = hide; h.append(c);
      });
      h.append(svg("line", { class: "zero", x1: f.L, x2: w - f.Rt, y1: f.Y(0), y2: f.Y(0) }));
    }))));

  grid.append(wide(section("Documents that differ most", "By the sum of the differences of their tokens.",
    table(["nats, A less B", "begins", "tokens", "from token", "document"], P.most_changed_documents.map(d => [signed(d.nats, 2), d.text, int(d.tokens), int(d.position), String(d.document)]), [1]))));
  grid.append(wide(section("Tokens that differ most", "Nats of the token in each run.",
    table(["A less B", "A", "B", "token", "after", "position"], P.most_changed_positions.map(d => [signed(d.nats - d.baseline_nats, 3), fix(d.nats, 3), fix(d.baseline_nats, 3), JSON.stringify(d.token), d.before, int(d.position)]), [3, 4]))));

  const s = wide(section("Text, coloured by the difference", "Blue: A paid less for the token than B; orange: more. Hover or touch a token for its number."));
  s.append(el("div", { class: "scale" }, "4 nats less in A", el("i", { class: "both" }), "4 nats more"));
  for (const p of D.passages) s.append(...passage(`${p.title}: ${signed(p.nats, 2)} nats over ${p.tokens} tokens from token ${int(p.position)}`, p.spans,
    nats => `rgba(var(${nats < 0 ? "--cool" : "--heat"}), ${(Math.min(Math.abs(nats), 4) / 4 * 0.75).toFixed(3)})`, nats => `${signed(nats, 3)} nats, A less B`));
  grid.append(s);

  const facts = D.runs.flatMap(r => [[`${r.name}: command line`, r.command], [`${r.name}: artifact`, r.artifact], [`${r.name}: time`, `${r.seconds.toFixed(1)} s`]]).filter(f => f[1]);
  grid.append(wide(section("How they were scored", "", el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, facts.map(f => el("tr", {}, el("td", { class: "key", textContent: f[0] }), el("td", { class: "value", textContent: f[1] })))))),
    D.differences.length ? el("div", {}, el("h3", { textContent: "In what they differ" }), table(["setting", "A", "B"], D.differences)) : el("p", { textContent: "No setting differs." }))));

  start();
