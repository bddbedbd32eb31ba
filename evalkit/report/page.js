  // One run. What charts.js defines is there.
  const R = D.report;

  // Head
  const a = R.artifact, shortName = p => String(p).split("/").pop();
  const verdict = R.verdict;
  const system = [a ? shortName(a.path) : "online mixer alone", R.recipe, R.mixer !== "none" ? `mixer ${R.mixer}` : null, R.ttt ? "test-time training" : null].filter(Boolean);
  page.append(el("h1", { textContent: system.join(" · ") }),
    el("p", { class: "sub", textContent: `${int(R.tokens_scored)} tokens of ${(R.tokens.names || []).map(shortName).join(", ")}` }));
  const tile = (value, name, cls) => el("div", { class: "tile" }, el("b", { textContent: value, class: cls || "" }), el("span", { textContent: name }));
  page.append(el("div", { class: "tiles" },
    tile(fix(R.bpb), D.half ? `bits per byte, \u00b1 ${fix(D.half)} (95%, documents as units)` : "bits per byte"), tile(fix(R.val_loss), "nats per token"),
    R.network_bpb !== undefined && R.network_bpb !== null && R.mixer !== "none" ? tile(fix(R.network_bpb), "bits per byte, network alone") : null,
    a ? tile(int(a.bytes), "bytes of artifact") : null,
    a ? tile(int(D.size_cap - a.bytes), a.bytes <= D.size_cap ? "bytes under the cap" : "bytes: over the cap", a.bytes <= D.size_cap ? "" : "bad") : null,
    tile(int(R.bytes_scored), "bytes of text"),
    tile(verdict || "not checked", "legality", { legal: "good", illegal: "bad", unproven: "unsure" }[verdict])));
  const grid = el("div", { class: "grid" }); page.append(grid);

  // Along the stream, with what else scored it
  if (D.stream) {
    const others = Object.entries(D.stream.others), own = R.mixer !== "none" ? "the mixture" : R.ttt ? "the trained network" : "the score";
    const pieces = "Thin: each of equal pieces of the stream; thick: everything up to there. Position 0 is given, not scored.";
    grid.append(wide(section("Along the stream", `Bits per byte. ${pieces}`,
      lines("bits per byte along the stream", D.stream.position, [
        { name: `${own}, this piece`, y: D.stream.local, color: "var(--s7)", width: 1.2, opacity: 0.8 },
        { name: `${own}, up to here`, y: D.stream.running, color: "var(--s1)", width: 2.4 },
        ...others.map(([name, o], i) => ({ name: `${name}, up to here`, y: o.running, color: color(i + 1), width: 2 }))],
      { xName: "token", yName: "bits per byte", from: 0, height: 270 }),
      ...(others.length ? [el("h3", { textContent: "The difference" }),
        el("p", { class: "why", textContent: `What ${own} saves: bits per byte of the other less its own; above 0 it helps.` }),
        lines("difference along the stream", D.stream.position, others.flatMap(([name, o], i) => [
          { name: `${name}, this piece`, y: minus(o.local, D.stream.local), color: color(i + 1), width: 1.1, opacity: 0.55 },
          { name: `${name}, up to here`, y: minus(o.running, D.stream.running), color: color(i + 1), width: 2.4 }]),
        { xName: "token", yName: "bits per byte saved", from: 0, height: 210, withZero: true, digits: 5 })] : []))));
  }

  // Documents
  const steps = (rows, label, xName, more) => { const r = rows.filter(r => r.bpb !== null); return lines(label, r.map(r => r.x),
    [{ name: "bits per byte", y: r.map(r => r.bpb), half: r.map(r => r.half) }],
    { xName, yName: "bits per byte", height: 240, labels: r.map(r => `${r.label} tokens before it\n${int(r.tokens)} tokens`), ...more }); };
  const shade = D.half ? " Shaded: 95% interval, documents as units." : "";
  if (D.document_position) grid.append(section("By position in the document", "By distance from the document's start: how much context helps." + shade + (D.document_position.starts ? ` Starts of documents (${int(D.document_position.starts)}) stand for no bytes and cost ${fix(D.document_position.start_nats, 2)} nats each, ${(D.document_position.start_share * 100).toFixed(2)}% of the score.` : ""),
    steps(D.document_position.rows, "bits per byte by position in the document", "tokens since the document's start", { logX: true })));
  if (D.window_position && D.window_position.length > 1) grid.append(section("By position in the window", "By how many tokens the window shows before the scored one. The first window, which scores at all lengths, is left out." + shade,
    steps(D.window_position, "bits per byte by position in the window", "tokens of context")));
  if (D.scatter) {
    const pts = D.scatter, ys = pts.map(p => p[1]), xs = pts.map(p => Math.max(p[0], 1));
    grid.append(section("By document", `${int(D.documents.count)} documents; each point is one, by length and bits per byte. The line is the score${D.half ? `, its 95% interval with documents as units is \u00b1 ${fix(D.half)}` : ""}.`,
      el("div", {}, chart((h, w) => {
        const f = frame(h, w, { label: "bits per byte by document", logX: true, xName: "bytes of the document", yName: "bits per byte", x: [Math.max(1, Math.min(...xs) * 0.9), Math.max(...xs) * 1.1], y: [Math.min(...ys) * 0.95, Math.max(...ys) * 1.03], height: 260 });
        h.append(svg("line", { x1: f.L, x2: w - f.Rt, y1: f.Y(R.bpb), y2: f.Y(R.bpb), style: "stroke:var(--s2)", "stroke-dasharray": "5 4" }));
        pts.forEach(p => {
          const c = svg("circle", { cx: f.X(Math.max(p[0], 1)), cy: f.Y(p[1]), r: 3.5, style: "fill:var(--s1)", "fill-opacity": 0.6 });
          c.onpointermove = e => show(`document ${p[2]}\n${int(p[0])} bytes\n${fix(p[1])} bits per byte`, e); c.onpointerleave = hide; h.append(c);
        });
      }))));
  }

  // Mixer
  if (D.mixer) {
    const m = D.mixer, name = m.method === "hedge" ? "Hedge" : m.method;
    if (m.weights.length > 1) grid.append(section("Weights of the experts over time", `Mean weight that the mixture (${name}) gave each expert since the point before.`,
      lines("expert weights", m.weights.map(r => r[0]), m.names.map((n, i) => ({ name: n, y: m.weights.map(r => r[i + 1]) })), { xName: "token", yName: "weight", from: 0, zero: true, top: 1, height: 260 })));
    grid.append(section("Gain of each expert", "Bits per byte that the mixture would have lost had the expert been left out at every token, its weight shared by the others. Gains of experts that stand in for each other do not add up.",
      bars(m.experts.map(e => ({ name: e.name, value: e.gain })), v => Math.abs(v) < 5e-6 ? "0" : (v > 0 ? "+" : "\u2212") + Math.abs(v).toFixed(5)),
      el("details", {}, el("summary", { textContent: "Each expert alone" }),
        table(["expert", "bits per byte alone", "mean weight"], m.experts.map(e => [e.name, fix(e.bpb), fix(e.weight)])))));
  }

  // Test-time training
  if (D.chunks) grid.append(section("Test-time training, chunk by chunk", "Each chunk is scored first and trained on after. Bits per byte of the chunk's score; below, the training loss in its first and last step.",
    lines("bits per byte by chunk", D.chunks.map(c => c.stop), [{ name: "bits per byte", y: D.chunks.map(c => c.bpb) }], { xName: "token", yName: "bits per byte", height: 220 }),
    el("details", {}, el("summary", { textContent: "Every chunk" }), table(["up to token", "bits per byte", "steps", "learning rate", "first loss", "last loss"],
      D.chunks.map(c => [int(c.stop), fix(c.bpb), c.steps ?? "–", c.learning_rate === null || c.learning_rate === undefined ? "–" : String(+c.learning_rate.toPrecision(3)), fix(c.first_loss), fix(c.last_loss)])))));

  // Surprise
  if (D.surprise) grid.append(section("What tokens cost", "Share of the tokens, and of all bits, by what one token cost. A few expensive tokens usually make most of the score.",
    el("div", {}, chart((h, w) => {
      const most = Math.max(...D.surprise.flatMap(r => [r.tokens, r.bits])) * 1.05, n = D.surprise.length;
      const f = frame(h, w, { label: "share of tokens and bits by cost", xName: "bits of the token", yName: "share", x: [0, n], y: [0, most], height: 240 });
      D.surprise.forEach((r, k) => ["tokens", "bits"].forEach((key, j) => {
        const bw = (f.X(1) - f.X(0)) * 0.42, c = svg("rect", { x: f.X(k + 0.06) + j * bw, width: bw, y: f.Y(r[key]), height: Math.max(0, f.H - f.B - f.Y(r[key])), style: `fill:${color(j)}` });
        c.onpointermove = e => show(`${r.label} bits\n${(r.tokens * 100).toFixed(1)}% of tokens\n${(r.bits * 100).toFixed(1)}% of bits`, e); c.onpointerleave = hide; h.append(c);
      }));
    })), el("div", { class: "legend" }, el("span", {}, el("i", { style: `background:${color(0)}` }), "share of tokens"), el("span", {}, el("i", { style: `background:${color(1)}` }), "share of bits"))));

  // Calibration: probabilities on both axes, by log-odds, so that both ends have room
  if (D.reliability && D.reliability.points.length) {
    const pts = D.reliability.points, tick = [1e-6, 1e-5, 1e-4, 1e-3, 0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999];
    const odds = p => { const q = Math.min(Math.max(p, 1e-9), 1 - 1e-9); return Math.log(q / (1 - q)); };
    const percent = p => p > 0.99 ? `${+(p * 100).toPrecision(5)}%` : `${+(p * 100).toPrecision(2)}%`;
    const name = p => p < 1e-3 ? p.toExponential(0) : String(p);
    const ends = pts.flatMap(p => [p.stated, p.came > 0 && p.came < 1 ? p.came : p.stated]).map(odds);
    const low = Math.min(...ends) - 0.5, high = Math.max(...ends) + 0.5;
    grid.append(section("Calibration", `Of all tokens that were given a probability near x, the share that came: on the diagonal, the probabilities mean what they say; above it they were too low, below it too high. Every token of the vocabulary counts, at ${int(D.reliability.positions)} sampled positions. Bars: 95%, were they independent.`,
      el("div", {}, chart((h, w) => {
        const size = Math.min(w, 460), H = size * 0.8, L = 52, B = 34, T = 24, Rt = 12;
        h.setAttribute("viewBox", `0 0 ${w} ${H}`); h.setAttribute("height", H); h.setAttribute("aria-label", "stated probability against share that came");
        const X = v => L + (v - low) / (high - low) * (w - L - Rt), Y = v => H - B - (Math.max(low, Math.min(high, v)) - low) / (high - low) * (H - B - T);
        let last = -1e9;
        for (const t of tick.filter(t => odds(t) > low && odds(t) < high)) {
          const at = odds(t);
          h.append(svg("line", { class: "gridline", x1: L, x2: w - Rt, y1: Y(at), y2: Y(at) }), svg("text", { x: L - 7, y: Y(at) + 4, "text-anchor": "end" }, name(t)));
          if (X(at) - last > 44) { h.append(svg("text", { x: X(at), y: H - B + 16, "text-anchor": "middle" }, name(t))); last = X(at); }
        }
        h.append(svg("line", { class: "axis", x1: L, x2: w - Rt, y1: H - B, y2: H - B }), svg("text", { x: w - Rt, y: H - 3, "text-anchor": "end" }, "stated probability"), svg("text", { x: 0, y: 12 }, "share that came"));
        h.append(svg("line", { x1: X(low), y1: Y(low), x2: X(high), y2: Y(high), style: "stroke:var(--s2)", "stroke-dasharray": "5 4" }));
        pts.forEach(p => {
          const x = X(odds(p.stated)), c = svg("circle", { cx: x, cy: Y(odds(p.came)), r: 4, style: "fill:var(--s1)" });
          h.append(svg("line", { x1: x, x2: x, y1: Y(odds(p.low)), y2: Y(odds(p.high)), style: "stroke:var(--s1)", "stroke-width": 1.5, opacity: 0.6 }), c);
          c.onpointermove = e => show(`stated ${percent(p.stated)}\ncame ${percent(p.came)}\n${int(p.tokens)} tokens`, e); c.onpointerleave = hide;
        });
      })),
      el("details", {}, el("summary", { textContent: "Every point" }), table(["stated", "came", "95%", "tokens"], pts.map(p => [percent(p.stated), percent(p.came), `${percent(p.low)} to ${percent(p.high)}`, int(p.tokens)])))));
  }

  // Artifact
  if (D.bytes) {
    const rows = D.bytes.slice(0, 14), rest = D.bytes.slice(14), total = D.bytes.reduce((s, r) => s + r.entropy_bytes, 0);
    if (rest.length) rows.push({ name: `${rest.length} more groups`, kind: "", parameters: rest.reduce((s, r) => s + r.parameters, 0), entropy_bytes: rest.reduce((s, r) => s + r.entropy_bytes, 0) });
    grid.append(section("Where the artifact's bytes go", `Estimate for each group of tensors: the order-0 entropy of its bytes, ${int(total)} in all; the file has ${int(a.bytes)}.`,
      bars(rows.map(r => ({ name: r.name + (r.kind ? ` (${r.kind})` : ""), value: r.entropy_bytes, title: `${int(r.parameters)} parameters` })), v => int(v))));
  }

  // Legality
  const why = "A score is legal if a decoder could rebuild the text from the artifact and that many bits.";
  if (D.check) {
    const c = D.check, cls = { legal: "good", illegal: "bad", unproven: "unsure" }[verdict];
    grid.append(wide(section("Legality", why,
      el("span", { class: `verdict ${cls}`, textContent: verdict }),
      D.coverage.summary ? el("p", { textContent: D.coverage.summary + "." }) : null,
      (c.findings || []).length ? el("ul", {}, c.findings.map(f => el("li", { textContent: `${f.axiom}${f.position === null || f.position === undefined ? "" : ` at position ${int(f.position)}`}: ${f.message}` }))) : el("p", { textContent: R.illegal_because || "Nothing was found in what was covered." }),
      (c.uncovered || []).length ? el("div", {}, el("h3", { textContent: "Not covered" }), el("ul", {}, c.uncovered.map(t => el("li", { textContent: t })))) : null,
      D.coverage.audits.length ? el("div", {}, el("h3", { textContent: "Covered" }), table(["audit", "what it asks", "looked at"], D.coverage.audits.map(r => [r.name, r.asks, r.extent]), [1])) : null)));
  } else grid.append(section("Legality", why, el("span", { class: `verdict ${verdict === "illegal" ? "bad" : "unsure"}`, textContent: verdict || "not checked" }),
    el("p", { textContent: R.illegal_because || "No audit is in this page: check with evalkit check --json, and give the file with --check." })));

  // Hardest documents and passages
  if (D.documents && D.documents.hardest.length) grid.append(wide(section("Hardest documents", "Of those with at least 200 bytes.",
    table(["bits per byte", "begins", "bytes", "from token", "document"], D.documents.hardest.map(d => [fix(d.bpb), d.begins, int(d.bytes), int(d.position), String(d.index)]), [1]))));
  if (D.passages) {
    const s = wide(section("Text, coloured by cost", "The stronger the colour, the more nats a token cost. Hover or touch a token for its number."));
    s.append(el("div", { class: "scale" }, "0 nats", el("i", {}), "8 nats and more"));
    for (const p of D.passages) s.append(...passage(`${p.title}: ${fix(p.bpb)} bits per byte, ${p.tokens} tokens from token ${int(p.position)}`, p.spans,
      nats => `rgba(var(--heat), ${(Math.min(nats, 8) / 8 * 0.75).toFixed(3)})`, nats => `${nats.toFixed(3)} nats, ${(nats / Math.LN2).toFixed(2)} bits`));
    grid.append(s);
  }

  // Everything else
  const facts = [["command line", D.command], ["artifact", a ? `${a.path}, ${a.format}, ${a.compression}, ${int(a.parameters)} parameters` : null], ["artifact sha256", a && a.sha256],
    ["tokens sha256", R.tokens.sha256], ["tokenizer", R.tokenizer && `${R.tokenizer.path}, sha256 ${R.tokenizer.sha256}`],
    ["window", R.seq_len && `${R.seq_len} tokens, ${R.context === "streaming" ? "streaming: keys and values are kept" : `stride ${R.stride}`}${R.context === "documents" ? ", each document by itself" : ""}, ${R.dtype} on ${R.device}`], ["ledger sha256", R.ledger_sha256],
    ["settings", R.settings && Object.entries(R.settings).flatMap(([s, o]) => Object.entries(o).map(([k, v]) => `${s}.${k}=${v}`)).join(" ")],
    ["raw text", R.bpb_raw && `${int(R.bytes_raw)} bytes before normalisation, ${fix(R.bpb_raw)} bits per raw byte`],
    ["time", R.seconds && `${R.seconds.toFixed(1)} s, ${int(R.tokens_per_second || 0)} tokens/s`], ["versions", R.versions && Object.entries(R.versions).map(e => e.join(" ")).join(", ")],
    ["code", R.code && `commit ${R.code.commit}${R.code.dirty ? ", changed since" : ""}`]].filter(f => f[1]);
  grid.append(wide(section("How it was scored", "", el("div", { class: "scroll" }, el("table", {}, el("tbody", {}, facts.map(f => el("tr", {}, el("td", { class: "key", textContent: f[0] }), el("td", { class: "value", textContent: f[1] })))))),
    R.config ? el("details", {}, el("summary", { textContent: "Model configuration" }), table(["setting", "value", "from"], Object.entries(R.config).map(([k, v]) => [k, Array.isArray(v) ? v.join(", ") : String(v), (R.config_origins || {})[k] || ""]))) : null,
    D.left_out.length ? el("details", {}, el("summary", { textContent: "What this page leaves out" }), el("ul", {}, D.left_out.map(t => el("li", { textContent: t })))) : null)));

  start();
