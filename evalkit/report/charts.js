  const D = JSON.parse(document.getElementById("data").textContent);
  const page = document.getElementById("page"), tip = document.getElementById("tip");
  const NS = "http://www.w3.org/2000/svg";
  const color = i => `var(--s${(i % 8) + 1})`;
  const int = x => Math.round(x).toLocaleString("en");
  const fix = (x, d = 4) => x === null || x === undefined ? "–" : x.toFixed(d);

  // Elements. Text only ever enters through textContent, so nothing in a report can become markup.
  function el(tag, props = {}, ...kids) {
    const e = document.createElement(tag);
    for (const [k, v] of Object.entries(props)) k === "style" ? (e.style.cssText = v) : k === "class" ? (e.className = v) : (e[k] = v);
    for (const kid of kids.flat()) if (kid !== null && kid !== undefined) e.append(kid);
    return e;
  }
  function svg(tag, attrs, text) {
    const e = document.createElementNS(NS, tag);
    for (const [k, v] of Object.entries(attrs)) e.setAttribute(k, v);
    if (text !== undefined) e.textContent = text;
    return e;
  }
  function section(title, why, ...kids) {
    return el("section", {}, el("h2", { textContent: title }), why ? el("p", { class: "why", textContent: why }) : null, ...kids);
  }
  const wide = s => (s.classList.add("wide"), s);
  function table(head, rows, textColumns = []) {
    return el("div", { class: "scroll" }, el("table", {},
      el("thead", {}, el("tr", {}, head.map((h, i) => el("th", { textContent: h, class: textColumns.includes(i) ? "text" : "" })))),
      el("tbody", {}, rows.map(r => el("tr", {}, r.map((c, i) => el("td", { textContent: c, class: textColumns.includes(i) ? "text" : "" })))))));
  }

  // Tooltip
  function show(text, event) {
    tip.textContent = text; tip.hidden = false;
    const w = tip.offsetWidth, h = tip.offsetHeight;
    tip.style.left = Math.max(4, Math.min(innerWidth - w - 4, event.clientX + 14)) + "px";
    tip.style.top = (event.clientY + h + 22 > innerHeight ? event.clientY - h - 12 : event.clientY + 14) + "px";
  }
  const hide = () => { tip.hidden = true; };

  // Axes, with units: frame(host, width, { x: [from, to], y: [from, to], xName, yName, label, logX, height })
  function ticks(low, high, count) {
    const raw = (high - low) / Math.max(count, 1) || 1, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 2.5, 5, 10].find(m => m * power >= raw) * power, out = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step) out.push(Math.abs(t) < step * 1e-9 ? 0 : t);
    return out;
  }
  function logTicks(low, high) {
    const decades = [0, 1, 2, 3, 4, 5, 6, 7].map(e => 10 ** e), inside = t => t >= low && t <= high;
    const coarse = decades.filter(inside), fine = decades.flatMap(t => [t, 2 * t, 5 * t]).filter(inside);
    return coarse.length > 2 ? coarse : fine.length > 1 ? fine : ticks(low, high, 3);
  }
  function short(x) {
    const a = Math.abs(x);
    if (a >= 1e6) return +(x / 1e6).toPrecision(3) + "M";
    if (a >= 1e3) return +(x / 1e3).toPrecision(3) + "k";
    return String(+x.toPrecision(3));
  }
  const charts = [];
  function chart(draw) {
    const host = svg("svg", { role: "img" });
    charts.push(() => { const w = host.parentNode.clientWidth; if (w) { host.replaceChildren(); draw(host, Math.max(240, host.getBoundingClientRect().width || w)); } });
    return host;
  }
  function frame(host, width, o) {
    const H = o.height || 230, L = 52, B = 34, T = 24, Rt = 10;
    host.setAttribute("viewBox", `0 0 ${width} ${H}`); host.setAttribute("height", H); host.setAttribute("aria-label", o.label);
    let [x0, x1] = o.x, [y0, y1] = o.y;
    if (x1 === x0) x1 = x0 + 1;
    if (y1 === y0) { y1 += 0.5; y0 -= 0.5; }
    const lx = o.logX ? Math.log : v => v;
    const X = v => L + (lx(v) - lx(x0)) / (lx(x1) - lx(x0)) * (width - L - Rt), Y = v => H - B - (v - y0) / (y1 - y0) * (H - B - T);
    for (const t of ticks(y0, y1, 4)) {
      host.append(svg("line", { class: "gridline", x1: L, x2: width - Rt, y1: Y(t), y2: Y(t) }));
      host.append(svg("text", { x: L - 7, y: Y(t) + 4, "text-anchor": "end" }, short(t)));
    }
    const xs = o.logX ? logTicks(x0, x1) : ticks(x0, x1, Math.max(2, Math.floor(width / 110)));
    for (const t of xs) host.append(svg("text", { x: X(t), y: H - B + 16, "text-anchor": "middle" }, short(t)));
    host.append(svg("line", { class: "axis", x1: L, x2: width - Rt, y1: H - B, y2: H - B }));
    host.append(svg("text", { x: width - Rt, y: H - 3, "text-anchor": "end" }, o.xName), svg("text", { x: 0, y: 12 }, o.yName));
    return { X, Y, H, L, B, T, Rt };
  }
  function lines(label, xs, series, o) {
    const ends = s => s.half ? s.y.flatMap((v, k) => v === null ? [] : [v - (s.half[k] || 0), v + (s.half[k] || 0)]) : s.y;
    const values = series.flatMap(ends).filter(v => v !== null).sort((a, b) => a - b);
    if (!values.length) return null;
    let low = o.zero ? 0 : values[Math.floor(values.length * 0.005)], high = o.top ?? values[Math.ceil((values.length - 1) * 0.995)];
    if (o.withZero) { low = Math.min(low, 0); high = Math.max(high, 0); }
    const pad = (high - low) * 0.06;
    const host = chart((h, w) => {
      const f = frame(h, w, { ...o, label, x: [o.from ?? xs[0], xs[xs.length - 1]], y: [o.zero ? 0 : low - pad, o.top ?? high + pad] });
      const clamp = v => Math.max(f.T, Math.min(f.H - f.B, v));
      if (o.withZero) h.append(svg("line", { class: "zero", x1: f.L, x2: w - f.Rt, y1: f.Y(0), y2: f.Y(0) }));
      series.forEach((s, i) => {
        if (s.half) {
          const at = s.y.map((v, k) => k).filter(k => s.y[k] !== null && s.half[k] !== null && s.half[k] !== undefined);
          const edge = (k, sign) => `${f.X(xs[k]).toFixed(1)} ${clamp(f.Y(s.y[k] + sign * s.half[k])).toFixed(1)}`;
          if (at.length > 1) h.append(svg("path", { d: "M" + [...at.map(k => edge(k, 1)), ...at.reverse().map(k => edge(k, -1))].join("L") + "Z", style: `fill:${s.color || color(i)}`, opacity: 0.16 }));
        }
        let d = "", pen = "M";
        s.y.forEach((v, k) => { if (v === null) pen = "M"; else { d += pen + f.X(xs[k]).toFixed(1) + " " + clamp(f.Y(v)).toFixed(1); pen = "L"; } });
        h.append(svg("path", { d, fill: "none", style: `stroke:${s.color || color(i)}`, "stroke-width": s.width || 2, "stroke-linejoin": "round", opacity: s.opacity || 1 }));
        if (xs.length <= 40) s.y.forEach((v, k) => v === null || h.append(svg("circle", { cx: f.X(xs[k]), cy: clamp(f.Y(v)), r: 2.5, style: `fill:${s.color || color(i)}` })));
      });
      const cursor = svg("line", { class: "axis", y1: f.T, y2: f.H - f.B, visibility: "hidden" });
      h.append(cursor, svg("rect", { x: f.L, y: 0, width: Math.max(0, w - f.L - f.Rt), height: f.H - f.B, fill: "transparent" }));
      h.onpointermove = e => {
        const box = h.getBoundingClientRect(), px = (e.clientX - box.left) * w / box.width;
        let k = 0;
        xs.forEach((x, j) => { if (Math.abs(f.X(x) - px) < Math.abs(f.X(xs[k]) - px)) k = j; });
        cursor.setAttribute("x1", f.X(xs[k])); cursor.setAttribute("x2", f.X(xs[k])); cursor.setAttribute("visibility", "visible");
        const digits = o.digits || 4, within = s => s.half && s.half[k] !== null && s.half[k] !== undefined ? ` \u00b1 ${fix(s.half[k], digits)}` : "";
        show([o.labels ? o.labels[k] : `${o.xName} ${int(xs[k])}`, ...series.filter(s => s.y[k] !== null).map(s => `${s.name}: ${fix(s.y[k], digits)}${within(s)}`)].join("\n"), e);
      };
      h.onpointerleave = () => { cursor.setAttribute("visibility", "hidden"); hide(); };
    });
    const legend = series.length > 1 ? el("div", { class: "legend" }, series.map((s, i) => el("span", {}, el("i", { style: `background:${s.color || color(i)}` }), s.name))) : null;
    return el("div", {}, el("div", {}, host), legend);
  }
  function bars(rows, format) {
    const most = Math.max(...rows.map(r => Math.abs(r.value)), 1e-300);
    return el("div", { class: "bars" }, rows.flatMap(r => [
      el("div", { class: "name", textContent: r.name }),
      el("div", { class: "track", title: r.title || "" }, el("div", { class: "fill" + (r.value < 0 ? " minus" : ""), style: `width:${(Math.abs(r.value) / most * 100).toFixed(2)}%` })),
      el("div", { class: "num", textContent: format(r.value, r) })]));
  }

  const minus = (a, b) => a.map((v, k) => v === null || b[k] === null ? null : v - b[k]);
  // A passage whose tokens are coloured by a number: [text, number, tokens] each
  function passage(title, spans, background, words) {
    const box = el("div", { class: "passage" });
    for (const [text, value, n] of spans) {
      const t = el("span", { textContent: text, style: `background:${background(value)}` });
      t.onpointermove = e => show(`${JSON.stringify(text)}\n${words(value)}${n > 1 ? `, ${n} tokens` : ""}`, e); t.onpointerleave = hide;
      box.append(t);
    }
    return [el("h3", { textContent: title }), box];
  }
  // The start of a page, when everything is in it
  function start() {
    const redraw = () => charts.forEach(d => d());
    redraw();
    let timer = 0;
    addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(redraw, 60); });
    addEventListener("scroll", hide, { passive: true });
  }
