// The page of `lm inspect`: what a model has inside for a text. Texts of models and users become text nodes, never HTML.
"use strict";
(async () => {
  const $ = id => document.getElementById(id);
  const packed = Uint8Array.from(atob($("data").textContent.trim()), c => c.charCodeAt(0));
  const inflated = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate"));
  const bytes = new Uint8Array(await new Response(inflated).arrayBuffer());
  const size = new DataView(bytes.buffer).getUint32(0);
  const data = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + size)));
  let at = 4 + size;
  const take = n => bytes.subarray(at, at += n);
  const STEPS = 255, LEAST = 0.05;  // of attention beside the sinks, below which there is nothing to look at

  // ---------------------------------------------------------------- attention

  const attentions = data.attention.map(one => {
    const rows = one.layers.length * one.heads * one.length, counts = take(rows), sinks = take(rows * one.sinks.length);
    const starts = new Uint32Array(rows + 1);
    for (let i = 0; i < rows; i++) starts[i + 1] = starts[i] + counts[i];
    const [low, high, steps] = [0, 1, 2].map(() => take(starts[rows]));
    return { ...one, starts, sinkSteps: sinks, low, high, steps, keyCount: data.texts[one.keys].length };
  });

  const sinkShare = (a, row) => {
    let sum = 0;
    for (let i = 0; i < a.sinks.length; i++) sum += a.sinkSteps[row * a.sinks.length + i];
    return sum / STEPS;
  };
  // each key that head (l, h) gives something from token t, and how much; renormalised where the sinks are apart
  const eachKey = (a, l, h, t, visit) => {
    const row = (l * a.heads + h) * a.length + t, share = sinkShare(a, row);
    if (state.apart && 1 - share < LEAST) return;
    const scale = (state.apart ? 1 / (1 - share) : 1) / STEPS;
    for (let i = a.starts[row]; i < a.starts[row + 1]; i++)
      visit((t - (a.low[i] | a.high[i] << 8)) & 0xffff, Math.min(1, a.steps[i] * scale));
    if (!state.apart) a.sinks.forEach((key, i) => visit(key, a.sinkSteps[row * a.sinks.length + i] / STEPS));
  };

  // ---------------------------------------------------------------- elements

  const h = (name, props, ...children) => {
    const e = name === "svg" || SVG.has(name) ? document.createElementNS("http://www.w3.org/2000/svg", name)
      : document.createElement(name);
    for (const [key, value] of Object.entries(props || {})) {
      if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
      else if (key === "style") e.style.cssText = value;
      else e.setAttribute(key, value);
    }
    e.append(...children);
    return e;
  };
  const SVG = new Set(["path", "line", "text", "rect", "g", "polyline"]);
  const SIGNS = { " ": "·", "\n": "⏎", "\t": "⇥", "\r": "␍" };
  const visible = piece => [...piece].map(c => SIGNS[c] ? h("i", {}, SIGNS[c]) : c);
  const plain = piece => [...piece].map(c => SIGNS[c] || c).join("");
  const piece = id => data.pieces[id] ?? `<${id}>`;
  const percent = p => p >= 0.0995 ? `${Math.round(p * 100)}%` : p >= 0.0005 ? `${(p * 100).toFixed(1)}%` : "<0.1%";
  const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const rgb = name => [1, 3, 5].map(i => parseInt((colour(name).length === 4
    ? "#" + [...colour(name).slice(1)].map(c => c + c).join("") : colour(name)).slice(i, i + 2), 16));
  const tint = (name, share) => `color-mix(in srgb, var(${name}) ${Math.round(100 * share)}%, transparent)`;
  const shade = p => p ** 0.65;

  const token = (id, i, more = {}) => h("span", { class: "tok", "data-i": i, ...more }, ...visible(piece(id)));
  const flow = (ids, style = () => "") => {
    const e = h("div", { class: "flow" });
    ids.forEach((id, i) => {
      e.append(token(id, i, { style: style(i) }));
      if (piece(id).includes("\n")) e.append(h("br"));
    });
    return e;
  };
  const bars = (rows, name = "--c0") => h("div", { class: "bars" }, ...rows.map(([label, share, more]) =>
    h("div", { class: "barrow" }, h("code", {}, ...[label].flat()), h("span", { class: "track" },
      h("span", { class: "fill", style: `width:${100 * share}%;background:var(${name})` })),
    h("span", { class: "n" }, more ?? percent(share)))));
  const fill = (id, ...children) => $(id).replaceChildren(...children);

  const chart = (lines, across, log) => {  // lines: {label, y, colour, faint}
    const W = Math.min(640, document.querySelector("main").clientWidth - 100), H = 190, bottom = 22, all = lines.flatMap(l => l.y), most = Math.max(1e-9, ...all);
    const n = Math.max(...lines.map(l => l.y.length)), least = Math.max(most / 1e4, Math.min(most / 10, ...all));
    const ticks = log ? [least, Math.sqrt(least * most), most] : [0, most / 2, most], names = ticks.map(v => v.toPrecision(2));
    const left = 12 + 7 * Math.max(4, ...names.map(name => name.length));
    const up = v => log ? Math.log(Math.max(v, least) / least) / Math.log(most / least) : v / most;
    const x = i => left + (W - left - 8) * (n > 1 ? i / (n - 1) : 0.5), y = v => 8 + (H - 8 - bottom) * (1 - up(v));
    const svg = h("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": across });
    ticks.forEach((v, i) => svg.append(h("line", { x1: left, x2: W - 8, y1: y(v), y2: y(v), stroke: "var(--line)" }),
      h("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, names[i])));
    for (let i = 0; i < n; i += Math.ceil(n / 10)) svg.append(h("text", { x: x(i), y: H - 6, "text-anchor": "middle" }, `${i}`));
    for (const l of lines)
      svg.append(h("polyline", { points: l.y.map((v, i) => `${x(i)},${y(v)}`).join(" "), fill: "none",
        stroke: `var(${l.colour})`, "stroke-width": l.faint ? 1.2 : 2.2, "stroke-dasharray": l.faint ? "4 3" : "none" }));
    const legend = lines.map(l => h("span", { class: "key" }, h("i", { style: `border-top:3px ${l.faint ? "dotted" : "solid"} var(${l.colour})` }), l.label));
    return h("figure", {}, svg, h("p", { class: "keys" }, ...legend, h("span", {}, `across: ${across}`)));
  };

  // a canvas of rows x columns of shares, -1 to 1
  const heat = (rows, columns, share, click, name = "--c0") => {
    const canvas = h("canvas", { class: "heat" }), image = new ImageData(columns, rows), [a, b] = [rgb(name), rgb("--c4")];
    for (let r = 0; r < rows; r++) for (let c = 0; c < columns; c++) {
      const v = share(r, c), base = v < 0 ? b : a;
      image.data.set([...base, 255 * shade(Math.min(1, Math.abs(v)))], 4 * (r * columns + c));
    }
    [canvas.width, canvas.height] = [columns, rows];
    canvas.getContext("2d").putImageData(image, 0, 0);
    const place = e => [Math.floor(e.offsetY / canvas.clientHeight * rows), Math.floor(e.offsetX / canvas.clientWidth * columns)];
    canvas.addEventListener("click", e => click && click(...place(e)));
    return [canvas, place];
  };

  // ---------------------------------------------------------------- what is chosen

  const main = data.texts[data.main];
  const state = { a: attentions.length - 1, l: 0, h: 0, t: 0, apart: true };
  const attention = () => attentions[state.a];
  const queries = () => attention() ? data.texts[attention().queries] : main;
  let noting = 0;
  const note = () => {  // what is chosen is in the address, to be shared
    try { history.replaceState(null, "", `#a=${state.a}&t=${state.t}&l=${state.l}&h=${state.h}`); } catch { /* a sandbox */ }
  };
  const choose = change => {
    Object.assign(state, change);
    const a = attention(), clamp = (v, n) => Math.max(0, Math.min(n - 1, v));
    state.t = clamp(state.t, queries().length);
    if (a) [state.l, state.h] = [clamp(state.l, a.layers.length), clamp(state.h, a.heads)];
    clearTimeout(noting);
    noting = setTimeout(note, 200);  // browsers refuse many in a short time
    update("a" in change || "apart" in change);
  };
  const strongest = () => {  // of each key the head that looks at it most from the chosen token
    const a = attention(), best = new Map();
    for (let l = 0; l < a.layers.length; l++) for (let i = 0; i < a.heads; i++) eachKey(a, l, i, state.t, (key, p) => {
      if (!(best.get(key)?.p >= p)) best.set(key, { key, p, l, h: i });
    });
    return [...best.values()].sort((x, y) => y.p - x.p);
  };

  // ---------------------------------------------------------------- images

  const pictureOf = name => data.images.find(one => one.name === name);
  // an image under a grid of shares, of which `on` is outlined; a click picks a cell
  const photo = (one, side, share, on, pick) => {
    const cells = Array.from({ length: side * side }, (_, i) => share(i)), most = Math.max(...cells, 1 / STEPS);
    const [canvas, place] = heat(side, side, (r, c) => cells[r * side + c] / most, pick && ((r, c) => pick(r * side + c)), "--c1");
    const named = e => { const [r, c] = place(e); return r < side && c < side ? [r, c] : null; };
    canvas.addEventListener("mousemove", e => {
      const at = named(e);
      if (at) canvas.title = `row ${at[0]}, column ${at[1]}: ${percent(cells[at[0] * side + at[1]])}`;
    });
    const part = 100 / side, box = h("div", { class: "cellmark", style: `left:${on % side * part}%;top:${Math.floor(on / side) * part}%;width:${part}%;height:${part}%` });
    const sum = cells.reduce((x, y) => x + y, 0);
    return h("figure", { class: "photo" }, h("div", {}, h("img", { src: one.src, alt: one.name }), canvas, on >= 0 ? box : ""),
      h("figcaption", {}, `${one.name}: ${percent(sum)} in all, at most ${percent(most)}`));
  };
  const photos = (a, shares) => {  // of the patches of one image, or of the soft tokens of all
    const share = i => shares.get(i) ?? 0, own = pictureOf(a.keys), near = a.queries === a.keys;
    if (own) return [photo(own, own.patches, share, state.t, t => choose({ t }))];
    if (a.keys !== data.main) return [];
    return data.images.map(one => {
      const on = state.t - one.start, n = one.side ** 2;
      return photo(one, one.side, i => share(one.start + i), near && on < n ? on : -1, near && (i => choose({ t: one.start + i })));
    });
  };

  // ---------------------------------------------------------------- the pictures

  const drawFlows = () => {
    const tinted = i => `background:${tint(`--c${i % 6}`, 0.16)}`;
    const texts = Object.entries(data.texts).filter(([name]) => !pictureOf(name));
    const flows = texts.map(([name, ids]) => {
      const e = h("div", { class: "flow ids" });
      ids.forEach((id, i) => e.append(h("span", { class: "tok", "data-i": i, "data-text": name, style: tinted(i) },
        ...visible(piece(id)), h("small", {}, `${id}`)), piece(id).includes("\n") ? h("br") : ""));
      return h("div", {}, texts.length > 1 ? h("h3", {}, name) : "", e);
    });
    fill("tokens", ...flows, ...data.images.map(one => h("figure", { class: "photo small" },
      h("img", { src: one.src, alt: one.name }), h("figcaption", {}, `${one.name}: ${one.side ** 2} soft tokens from ${one.start} on`))));
    const moved = data.order.moved_to.map(i => main[i]);
    fill("orders", flow(main), flow(moved));
  };

  const drawOrder = () => {
    const colours = ["--c0", "--c1", "--c2"], t = state.t;
    const mean = row => row.reduce((x, y) => x + y, 0) / row.length;
    const lines = data.order.lines.map((l, i) => ({ label: l.label, y: l.apart.map(mean), colour: colours[i] }));
    if (queries() === main) lines.push({ label: `${plain(piece(main[t]))} alone`, y: data.order.lines[0].apart.map(row => row[t]), colour: "--c0", faint: true });
    fill("order-lines", chart(lines, "layer (0: the embedding)"));
  };

  const drawNear = () => {
    const ids = queries(), near = data.neighbours[ids[state.t]];
    fill("near", h("p", { class: "head" }, "nearest to ", h("code", {}, ...visible(piece(ids[state.t])))),
      near ? bars(near.map(([id, cosine]) => [visible(piece(id)), Math.max(0, cosine), cosine.toFixed(2)])) : "–");
  };

  const drawLook = () => {
    const a = attention();
    const ids = queries(), keys = data.texts[a.keys], shares = new Map();
    eachKey(a, state.l, state.h, state.t, (key, p) => shares.set(key, p));
    const row = (state.l * a.heads + state.h) * a.length + state.t, sunk = sinkShare(a, row);
    const top = [...shares].sort((x, y) => y[1] - x[1]).slice(0, 4);
    const said = top.flatMap(([key, p], i) => [h("code", {}, ...visible(piece(keys[key]))), ` ${percent(p)}${i + 1 < top.length ? ", " : ". "}`]);
    const sinks = a.sinks.map(i => plain(piece(keys[i]))).join(" and ");
    fill("said", h("b", {}, `layer ${a.layers[state.l]}, head ${state.h}: `), h("code", {}, ...visible(piece(ids[state.t]))),
      " looks at ", ...(said.length ? said : ["nothing besides. "]),
      state.apart && a.sinks.length ? h("span", { class: "muted" }, `The sink, ${sinks}, told apart: ${percent(sunk)}.`) : "");
    fill("photos", ...photos(a, shares));
    $("look").hidden = !!pictureOf(a.keys);
    if (pictureOf(a.keys)) return;
    const self = a.queries === a.keys;
    const seen = flow(keys, i => shares.has(i) ? `background:${tint("--c1", shade(shares.get(i)) * 0.85)}` : "");
    const own = self ? seen : flow(ids);
    [...own.querySelectorAll(".tok")][state.t].classList.add("on");
    const box = h("div", { class: "arcs" }, ...(self ? [seen] : [own, seen]));
    fill("look", box);
    box.scrollTop = own.querySelector(".on").offsetTop - box.clientHeight / 2;
    const svg = h("svg", { class: "over" }), origin = box.getBoundingClientRect();
    const centre = e => { const r = e.getBoundingClientRect(); return [r.x + r.width / 2 - origin.x, r.y - origin.y + box.scrollTop, r.height]; };
    const [x0, y0, tall] = centre(own.querySelector(".on")), spans = seen.querySelectorAll(".tok");
    [...shares].sort((x, y) => y[1] - x[1]).slice(0, 12).filter(([, p]) => p > 0.02).forEach(([key, p]) => {
      const [x, y] = centre(spans[key]), up = Math.min(y0, y) - Math.min(26, 10 + Math.abs(x - x0) / 8);
      const path = self ? `M${x0},${y0} C${x0},${up} ${x},${up} ${x},${y}`
        : `M${x0},${y0 + tall} C${x0},${(y0 + tall + y) / 2} ${x},${(y0 + tall + y) / 2} ${x},${y}`;
      svg.append(h("path", { d: path, "stroke-width": 0.8 + 4 * p, opacity: 0.25 + 0.75 * p }));
    });
    box.append(svg);
  };

  const drawMatrix = () => {
    const a = attention(), T = a.length, S = a.keyCount, cells = new Float32Array(T * S);
    for (let t = 0; t < T; t++) eachKey(a, state.l, state.h, t, (key, p) => { cells[t * S + key] = p; });
    const [canvas, place] = heat(T, S, (r, c) => cells[r * S + c], r => choose({ t: r }));
    canvas.style.aspectRatio = `${S} / ${T}`;
    const [ids, keys] = [queries(), data.texts[a.keys]];
    canvas.addEventListener("mousemove", e => {
      const [r, c] = place(e);
      if (r < T && c < S) canvas.title = `${plain(piece(ids[r]))} → ${plain(piece(keys[c]))}: ${percent(cells[r * S + c])}`;
    });
    const line = h("div", { class: "rowmark", style: `top:${100 * state.t / T}%;height:${100 / T}%` });
    fill("matrix", h("div", { class: "framed" }, canvas, line), h("p", { class: "muted" }, "rows look, columns are looked at"));
  };

  const drawStrongest = () => {
    const a = attention(), keys = data.texts[a.keys], found = strongest().slice(0, 9);
    fill("strongest", h("p", { class: "head" }, "the most that any head (layer.head) looks from ", h("code", {}, ...visible(piece(queries()[state.t])))),
      h("div", { class: "bars" }, ...found.map(({ key, p, l, h: i }) => h("button", { class: "barrow", "data-head": `${a.layers[l]}.${i}`,
        onclick: () => choose({ l, h: i }) }, h("code", {}, ...visible(piece(keys[key]))),
      h("span", { class: "track" }, h("span", { class: "fill", style: `width:${100 * p}%;background:var(--c1)` })),
      h("span", { class: "n" }, `${percent(p)} · ${a.layers[l]}.${i}`)))));
  };

  const drawGrid = () => {
    const a = attention(), L = a.layers.length, S = a.keyCount, T = a.length, ratio = Math.min(2, devicePixelRatio || 1);
    const cell = Math.max(22, Math.min(64, Math.floor(($("grid").clientWidth - 2) / L))), c = Math.round(cell * ratio), gap = 2;
    const W = L * c, image = new ImageData(W, a.heads * c), [r, g, b] = rgb("--c1"), pixels = new Uint32Array(image.data.buffer);
    const [frame, n] = [rgb("--line"), c - gap];
    pixels.fill((90 << 24 | frame[2] << 16 | frame[1] << 8 | frame[0]) >>> 0);
    for (let l = 0; l < L; l++) for (let i = 0; i < a.heads; i++) for (let t = 0; t < T; t++) {
      const y0 = Math.floor(t * n / T), y1 = Math.max(y0 + 1, Math.floor((t + 1) * n / T));
      eachKey(a, l, i, t, (key, p) => {
        const alpha = Math.round(255 * shade(p)), x0 = Math.floor(key * n / S), x1 = Math.max(x0 + 1, Math.floor((key + 1) * n / S));
        for (let y = y0; y < y1; y++) for (let x = x0; x < x1; x++) {
          const k = (i * c + y) * W + l * c + x;
          if (alpha > 40 && (pixels[k] >>> 24 === 90 || pixels[k] >>> 24 < alpha)) pixels[k] = (Math.max(91, alpha) << 24 | b << 16 | g << 8 | r) >>> 0;
        }
      });
    }
    for (let y = 0; y < image.height; y++) for (let x = 0; x < W; x++) if (x % c >= n || y % c >= n) pixels[y * W + x] = 0;
    const canvas = h("canvas", { width: W, height: image.height, style: `width:${L * cell}px;height:${a.heads * cell}px` });
    canvas.getContext("2d").putImageData(image, 0, 0);
    const head = e => ({ l: Math.min(L - 1, Math.floor(e.offsetX / cell)), h: Math.min(a.heads - 1, Math.floor(e.offsetY / cell)) });
    canvas.addEventListener("click", e => choose(head(e)));
    canvas.addEventListener("mousemove", e => { canvas.title = `layer ${a.layers[head(e).l]}, head ${head(e).h}`; });
    fill("grid", h("div", { class: "framed", "data-cell": cell }, canvas, h("div", { class: "cellmark", id: "mark" })));
  };
  const mark = () => {
    const cell = +$("mark").parentNode.dataset.cell;
    $("mark").style.cssText = `left:${state.l * cell}px;top:${state.h * cell}px;width:${cell}px;height:${cell}px`;
  };

  const drawMoved = () => {
    const parts = data.moved[attention()?.queries ?? data.main], colours = ["--c1", "--c2", "--c0"];
    const names = parts.length === 3 ? colours : ["--c1", "--c0"];
    fill("moved", chart(parts.map((p, i) => ({ label: p.what, y: p.share.map(row => row[state.t]), colour: names[i] })), "layer", true));
  };

  const spoken = data.texts[data.texts.output ? "output" : data.main];
  const chance = new Map(data.output.followed.slice(0, -1).map((p, i) => [data.output.places[i] + 1, p]));
  const surprise = p => Math.max(0, Math.min(1, 1 + Math.log10(Math.max(p, 1e-9)) / 4));
  const drawOutput = () => {
    const { places, best, causal } = data.output;
    if (!places.length) return;
    const e = flow(spoken, i => chance.has(i) ? `background:color-mix(in srgb, color-mix(in oklab, var(--good) ${100 * surprise(chance.get(i))}%, var(--c4)) 38%, transparent)`
      : places.includes(i) && !causal ? `background:${tint("--c1", 0.5)}` : "");
    e.classList.add("spoken");
    const tip = $("tip");
    e.addEventListener("pointerover", event => {
      const i = +(event.target.closest(".tok")?.dataset.i ?? -1), from = causal ? places.indexOf(i - 1) : places.indexOf(i);
      if (from < 0) { tip.hidden = true; return; }
      tip.replaceChildren(h("p", {}, h("code", {}, ...visible(piece(spoken[i]))), causal ? ` ${percent(chance.get(i))} here; likeliest` : " likeliest"),
        bars(best[from].slice(0, 6).map(([id, p]) => [visible(piece(id)), p])));
      tip.hidden = false;
      const r = event.target.closest(".tok").getBoundingClientRect();
      tip.style.left = `${Math.max(8, Math.min(r.x, innerWidth - tip.offsetWidth - 8))}px`;
      tip.style.top = `${r.bottom + tip.offsetHeight + 8 < innerHeight ? r.bottom + 6 : r.top - tip.offsetHeight - 6}px`;
    });
    e.addEventListener("pointerleave", () => { tip.hidden = true; });
    fill("spoken", e);
  };
  const drawNext = () => {
    const { places, best, lens, causal } = data.output;
    if (!places.length) return;
    const own = queries() === spoken && places.includes(state.t) ? state.t : places[places.length - 1], i = places.indexOf(own);
    const before = plain(spoken.slice(Math.max(0, own - 3), own + 1).map(piece).join(""));
    fill("next", h("p", { class: "head" }, causal ? "after " : "in place of ", h("code", {}, (own > 3 ? "…" : "") + before)),
      bars(best[i].map(([id, p]) => [visible(piece(id)), p])));
    const j = lens.places.indexOf(own);
    const rows = j < 0 ? [] : lens.best.map((layer, l) => h("tr", {}, h("th", {}, `${l}`), ...layer[j].map(([id, p]) =>
      h("td", { style: `background:${tint("--c0", shade(p) * 0.6)}` }, h("code", {}, ...visible(piece(id))), h("small", {}, ` ${percent(p)}`)))));
    fill("lens", h("p", { class: "head" }, "behind each layer"), rows.length ? h("table", {}, ...rows)
      : h("p", { class: "muted" }, `kept of the last ${lens.places.length} tokens`));
  };

  const drawChanges = () => data.what_if.length && fill("changes", ...data.what_if.map(one => {
    const list = rows => bars(rows.map(([id, p, q]) => [visible(piece(id)), p, `${percent(p)} (${percent(q)})`]));
    const beside = h("div", { class: "two" }, h("div", {}, h("p", { class: "head" }, "as it is"), list(one.before)),
      h("div", {}, h("p", { class: "head" }, one.title), list(one.after)));
    const parts = [h("h3", {}, `${one.title}: KL ${one.divergence} nats`), beside];
    if (one.patch) {
      const [up, down] = one.pair.map(id => h("code", {}, ...visible(piece(id))));
      const names = { tokens: "the stream of a layer (down) at a token (across)", heads: "a head (across) of a layer (down)" };
      parts.push(flow(one.other), h("p", {}, "How far the logit of ", up, " less that of ", down, " goes from this text's (none) to the other's (full blue):"),
        h("div", { class: "two" }, ...Object.entries(names).map(([name, label]) => {
          const grid = one.patch[name], [canvas, place] = heat(grid.length, grid[0].length, (r, c) => grid[r][c]);
          canvas.addEventListener("mousemove", e => {
            const [r, c] = place(e), v = grid[r]?.[c];
            if (v !== undefined) canvas.title = `layer ${r}, ${name === "heads" ? `head ${c}` : plain(piece(main[c]))}: ${v.toFixed(2)}`;
          });
          canvas.style.height = `${Math.max(120, Math.min(360, 12 * grid.length))}px`;
          return h("figure", {}, h("figcaption", {}, label), h("div", { class: "framed" }, canvas));
        })));
    }
    return h("div", { class: "change" }, ...parts);
  }));

  // ---------------------------------------------------------------- keys, and all again

  let drawn = "";
  const update = anew => {
    document.querySelectorAll("#tokens .on, #spoken .on").forEach(e => e.classList.remove("on"));
    const name = attention()?.queries ?? data.main;
    for (const flow of [$("tokens"), name === (data.texts.output ? "output" : data.main) ? $("spoken") : null]) {
      const own = [...flow?.querySelectorAll(".tok") ?? []].filter(e => (e.dataset.text ?? name) === name);
      own[state.t]?.classList.add("on");
      if (own[state.t]?.parentNode.scrollHeight > own[state.t]?.parentNode.clientHeight)
        own[state.t].parentNode.scrollTop = own[state.t].offsetTop - own[state.t].parentNode.offsetTop - 60;
    }
    drawOrder(); drawNear(); drawMoved(); drawNext();
    if (!attention()) return;
    for (const [what, text] of [["t", `${pictureOf(attention().keys) ? "patch" : "token"} ${state.t}`], ["l", `layer ${attention().layers[state.l]}`], ["h", `head ${state.h}`]])
      $(`at-${what}`).textContent = text;
    drawLook(); drawStrongest();
    const key = `${state.a} ${state.l} ${state.h} ${state.apart}`;
    if (anew || !$("mark")) drawGrid();
    mark();
    if (key !== drawn || anew) drawMatrix();
    document.querySelectorAll("#matrix .rowmark").forEach(e => { e.style.top = `${100 * state.t / attention().length}%`; });
    drawn = key;
  };
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  document.addEventListener("keydown", e => {
    const step = steps[e.key];
    if (!step || e.ctrlKey || e.altKey || e.metaKey || e.target.closest?.("input, select, textarea")) return;
    if (step[1] && !$("layers")?.contains(document.activeElement)) return;  // up and down scroll elsewhere
    e.preventDefault();
    choose(e.shiftKey ? { h: state.h + step[0] + step[1] } : { t: state.t + step[0], l: state.l + step[1] });
  });
  document.addEventListener("click", e => {
    const span = e.target.closest?.(".tok"), of = span?.closest("#tokens, #look, #spoken");
    if (!of) return;
    const name = of.id === "tokens" ? span.dataset.text : of.id === "spoken" ? (data.texts.output ? "output" : data.main)
      : span.parentNode === of.querySelector(".flow") ? attention().queries : attention().keys;
    const a = attention()?.queries === name ? state.a : attentions.findIndex(one => one.queries === name);
    choose({ ...(a >= 0 && a !== state.a ? { a } : {}), t: +span.dataset.i });
    if (a >= 0) $("which").value = `${a}`;
  });
  for (const button of document.querySelectorAll("[data-step]")) button.addEventListener("click", () => {
    const [what, by] = button.dataset.step.split(" ");
    choose({ [what]: state[what] + +by });
  });
  if (attentions.length) {
    $("apart").addEventListener("change", e => choose({ apart: e.target.checked }));
    attentions.forEach((a, i) => $("which").append(h("option", { value: i }, a.title)));
    $("which").addEventListener("change", e => choose({ a: +e.target.value }));
    $("which").hidden = attentions.length < 2;
  }

  const hash = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  for (const key of ["a", "t", "l", "h"]) if (/^\d+$/.test(hash[key] ?? "")) state[key] = +hash[key];
  state.a = Math.min(state.a, attentions.length - 1);
  if (hash.t === undefined) state.t = (data.output.causal ? null : data.output.places.at(-1)) ?? queries().length - 1;
  if (attention() && hash.l === undefined) {
    const first = strongest().find(one => attention().queries !== attention().keys || one.key !== state.t);
    if (first) [state.l, state.h] = [first.l, first.h];
  }
  if (attentions.length) $("which").value = `${state.a}`;
  drawFlows(); drawOutput(); drawChanges();
  choose({});
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { drawChanges(); update(true); });
  addEventListener("resize", () => update(true));
  document.documentElement.dataset.ready = `${Math.round(performance.now())}`;
})();
