"use strict";
// Draws each plot of the page and keeps labels of points from covering each other.
(function () {
  const LABEL_PX = 11, SMALL_PX = 560, PRINT_WIDTH_PX = 680, PRINT_HEIGHT_PX = 300;
  const OPTIONS = { displayModeBar: false, responsive: false, scrollZoom: false };
  // Above, below, right, left of the point, then the corners.
  const PLACES = [[0, -1], [0, 1], [1, 0], [-1, 0], [1, -1], [-1, -1], [1, 1], [-1, 1]];

  // Okabe and Ito's colours (2008), told apart with any common colour vision; marks differ too.
  // Ink, lines and paper are the style sheet's, so that a plot follows dark mode.
  const BLUE = "#0072B2", SKY = "#56B4E9", ORANGE = "#E69F00", GREEN = "#009E73";
  const VERMILLION = "#D55E00", PURPLE = "#CC79A7", GREY = "#8A8F98";
  const SERIES = [BLUE, ORANGE, GREEN, VERMILLION, SKY, PURPLE, GREY];
  const MARKS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon"];
  const KINDS = {
    "16 bits, not quantized": [GREY, "star"],
    "EWQ plan, bitsandbytes": [BLUE, "circle"],
    "fitted plan, bitsandbytes": [SKY, "triangle-up"],
    "uniform control, bitsandbytes": [VERMILLION, "square-open"],
    "EWQ plan, GGUF": [GREEN, "diamond"],
    "fitted plan, GGUF": [PURPLE, "triangle-up"],
    "uniform control, GGUF preset": [ORANGE, "diamond-open"],
    "folder, as transformers loads it": [VERMILLION, "x"],
    "other": [GREY, "cross"],
  };

  function titled(axes, more) {
    const title = (text) => ({ title: { text: text, standoff: 8 } });
    return { ...more, xaxis: { ...title(axes[0]), ...more.xaxis },
             yaxis: { ...title(axes[1]), ...more.yaxis } };
  }

  function padded(values, share) {
    const low = Math.min(...values), high = Math.max(...values);
    const room = share * (high - low || Math.abs(high) || 1);
    return [low - room, high + room];
  }

  // From what a plot shows to plotly.js's data and layout, by the plot's kind.
  const FIGURES = {
    sizes(plot) {
      const front = { type: "scatter", mode: "lines", name: "Pareto front", hoverinfo: "skip",
        x: plot.front.map((p) => p[0]), y: plot.front.map((p) => p[1]),
        line: { color: GREY, width: 1.5, dash: "dot", shape: "hv" } };
      const traces = Object.entries(KINDS).map(([label, [color, symbol]]) => {
        const own = plot.points.filter((p) => p.kind === label);
        return { type: "scatter", mode: "markers", name: label,
          x: own.map((p) => p.size), y: own.map((p) => p.value), text: own.map((p) => p.variant),
          marker: { color: color, symbol: symbol, size: 11, line: { width: 2, color: color } },
          error_y: { type: "data", color: color, thickness: 1.5, symmetric: false,
            array: own.map((p) => p.high - p.value), arrayminus: own.map((p) => p.value - p.low) },
          hovertemplate: "%{text}<br>" + plot.axes[0] + ": %{x:.3g}<br>" + plot.axes[1]
            + ": %{y:.4g}<extra></extra>" };
      });
      const layout = titled(plot.axes, {
        xaxis: { range: padded(plot.points.map((p) => p.size), 0.12) },
        yaxis: { range: padded(plot.points.flatMap((p) => [p.low, p.high]), 0.1) } });
      return { data: [front, ...traces.filter((trace) => trace.x.length)], layout: layout };
    },
    blocks(plot) {
      const curve = { type: "scatter", mode: "lines+markers", showlegend: false,
        x: plot.x, y: plot.y, line: { color: GREY, width: 1 }, marker: { color: GREY, size: 7 },
        hovertemplate: "block %{x}: %{y:.4f}<extra></extra>" };
      const lines = [plot.mean, ...plot.thresholds].map((value, n) => ({
        type: "line", xref: "paper", x0: 0, x1: 1, y0: value, y1: value,
        line: { color: GREY, width: 1, dash: n ? "dash" : "solid" } }));
      const range = [plot.x[0] - 0.6, plot.x[plot.x.length - 1] + 0.6];
      return { data: [curve], layout: titled(plot.axes, { xaxis: { range: range }, shapes: lines }) };
    },
    history(plot) {
      const traces = plot.lines.flatMap((line, place) => {
        const color = SERIES[place % SERIES.length];
        const values = { type: "scatter", mode: "lines+markers", name: line.name,
          x: line.x, y: line.y, line: { color: color, width: 1.5 },
          marker: { symbol: MARKS[place % MARKS.length],
            size: line.x.map((_, n) => (line.starts.includes(n) ? 14 : 7)) },
          hovertemplate: "%{x}<br>%{y:.5g}<extra>" + line.name + "</extra>" };
        const newest = line.x[line.x.length - 1];
        const bar = { type: "scatter", mode: "lines", opacity: 0.3, hoverinfo: "skip",
          x: [newest, newest], y: line.expected, showlegend: false,
          line: { color: color, width: 10 } };
        return line.expected ? [values, bar] : [values];
      });
      const axis = { type: "category", categoryorder: "array", categoryarray: plot.runs };
      return { data: traces, layout: titled(plot.axes, { xaxis: axis }) };
    },
  };

  function read(box) {
    const plot = JSON.parse(document.getElementById(box.id + "-data").textContent);
    return FIGURES[plot.kind](plot);
  }

  // What all layouts share; margins and axes may be overridden or extended.
  function framed(layout) {
    const axis = { automargin: true, gridcolor: "#888", zeroline: false, fixedrange: true };
    const frame = {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", dragmode: false,
      font: { family: "system-ui, sans-serif", size: 12 },
      hoverlabel: { font: { family: "system-ui, sans-serif" } },
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      ...layout, margin: { l: 58, r: 16, t: 12, b: 52, ...layout.margin } };
    Object.keys(layout).filter((key) => /^[xy]axis/.test(key))
      .forEach((key) => { frame[key] = { ...axis, ...layout[key] }; });
    return frame;
  }

  // The names of the points of figures against size.
  function labelled(traces) {
    return traces.filter((trace) => trace.mode === "markers").flatMap((trace) =>
      trace.x.map((x, n) => ({ x: x, y: trace.y[n], text: trace.text[n],
                               low: trace.y[n] - trace.error_y.arrayminus[n],
                               high: trace.y[n] + trace.error_y.array[n] })));
  }

  function overlap(a, b) {
    return a[2] > b[0] && a[0] < b[2] && a[3] > b[1] && a[1] < b[3];
  }

  function distance(box, p) {
    return Math.hypot(Math.max(box[0] - p.x, 0, p.x - box[2]),
                      Math.max(box[1] - p.y, 0, p.y - box[3]));
  }

  // Pixels from the left or top of the plotting area.
  function pixels(axis, value, length_px) {
    return length_px * (value - axis.range[0]) / (axis.range[1] - axis.range[0]);
  }

  // Boxes around the steps of a line that goes right, then up or down.
  function steps(x, y) {
    return x.slice(1).flatMap((right, n) => [
      [x[n], y[n] - 1, right, y[n] + 1],
      [right - 1, Math.min(y[n], y[n + 1]), right + 1, Math.max(y[n], y[n + 1])]]);
  }

  // Greedy: each label takes the first free place around its point. Where none is free the
  // name stays in the hover text and in the table.
  function annotations(labels, lines, layout, size, font_px) {
    const y_px = (value) => size.h - pixels(layout.yaxis, value, size.h);
    const points = labels.map((label) => ({
      label: label, x: pixels(layout.xaxis, label.x, size.w), y: y_px(label.y) }));
    const taken = lines.flatMap((line) => steps(line.x.map((x) => pixels(layout.xaxis, x, size.w)),
                                                line.y.map(y_px)));
    points.forEach((p) => {
      taken.push([p.x - 7, p.y - 7, p.x + 7, p.y + 7]);
      taken.push([p.x - 4, y_px(p.label.high), p.x + 4, y_px(p.label.low)]);
    });
    return points.map((p) => {
      const length = p.label.text.replace(/&[a-z#0-9]+;/g, "x").length;
      const w = length * font_px * 0.58 + 2, h = font_px + 2;
      for (const [dx, dy] of PLACES) {
        const cx = p.x + dx * (9 + w / 2), cy = p.y + dy * (9 + h / 2);
        const box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
        // A label nearer to another point than to its own would name the wrong one.
        const own = distance(box, p);
        const clear = points.every((q) => q === p || distance(box, q) > own
          || (q.x === p.x && q.y === p.y));
        const inside = box[0] >= 0 && box[1] >= 0 && box[2] <= size.w && box[3] <= size.h;
        if (inside && clear && !taken.some((other) => overlap(box, other))) {
          taken.push(box);
          return { x: p.label.x, y: p.label.y, text: p.label.text, showarrow: false,
                   xshift: cx - p.x, yshift: p.y - cy, font: { size: font_px } };
        }
      }
      return null;
    }).filter(Boolean);
  }

  function draw(box, width_px) {
    const drawn = read(box), layout = framed(drawn.layout), labels = labelled(drawn.data);
    layout.width = width_px || box.clientWidth;
    layout.height = Number(box.dataset.height);
    if (width_px && labels.length) { layout.height = PRINT_HEIGHT_PX; }
    const small = layout.width < SMALL_PX;
    if (small) {
      layout.font.size -= 1;
      layout.margin.r = 6;
    }
    return Plotly.react(box, drawn.data, layout, OPTIONS).then(() => {
      const size = box._fullLayout._size;
      if (!labels.length) { return null; }
      const lines = drawn.data.filter((trace) => trace.mode === "lines");
      const font_px = small ? LABEL_PX - 1 : LABEL_PX;
      const found = annotations(labels, lines, layout, size, font_px);
      return Plotly.relayout(box, { annotations: found });
    }).then(() => { box.dataset.drawn = "yes"; });
  }

  const plots = Array.from(document.querySelectorAll(".plot"));
  const all = (width_px) => plots.forEach((box) => draw(box, width_px));
  const main = document.querySelector("main");
  let waiting = 0, width = main.clientWidth, printing = false;
  new ResizeObserver(() => {
    if (main.clientWidth === width || printing) { return; }
    width = main.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(() => all(), 100);
  }).observe(main);
  window.addEventListener("beforeprint", () => {
    printing = true;
    document.querySelectorAll("details.samples, details.folded").forEach((each) => { each.open = true; });
    all(PRINT_WIDTH_PX);
  });
  window.addEventListener("afterprint", () => { printing = false; all(); });
  all();
})();
