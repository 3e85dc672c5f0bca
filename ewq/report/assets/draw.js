"use strict";
// Draws each plot of the page and keeps labels of points from covering each other.
(function () {
  var LABEL_PX = 11, PRINT_WIDTH_PX = 680;
  var OPTIONS = { displayModeBar: false, responsive: false, scrollZoom: false };
  var plots = [];

  function spec(box) {
    return JSON.parse(document.getElementById(box.id + "-data").textContent);
  }

  function position(axis, value, length_px) {
    var share = (value - axis.range[0]) / (axis.range[1] - axis.range[0]);
    return share * length_px;
  }

  // Greedy: each label takes the first of eight places around its point that is free.
  function labels(drawn, width_px, height_px) {
    var layout = drawn.layout, margin = layout.margin, small = width_px < 560;
    var inner_w = width_px - margin.l - margin.r, inner_h = height_px - margin.t - margin.b - 40;
    var font = small ? LABEL_PX - 1 : LABEL_PX;
    var points = drawn.labels.map(function (label) {
      return { x: position(layout.xaxis, label[0], inner_w),
               y: inner_h - position(layout.yaxis, label[1], inner_h), label: label };
    });
    var taken = points.map(function (p) { return [p.x - 7, p.y - 7, p.x + 7, p.y + 7]; });
    return points.map(function (p, own) {
      var length = p.label[2].replace(/&[a-z#0-9]+;/g, "x").length;
      var w = length * font * 0.58 + 4, h = font + 3, gap = 10;
      var places = [[0, -1], [0, 1], [1, 0], [-1, 0], [1, -1], [-1, -1], [1, 1], [-1, 1]];
      for (var i = 0; i < places.length; i++) {
        var dx = places[i][0], dy = places[i][1];
        var cx = p.x + dx * (gap + w / 2), cy = p.y + dy * (gap + h / 2);
        var box = [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2];
        if (box[0] < 0 || box[1] < 0 || box[2] > inner_w || box[3] > inner_h) { continue; }
        var free = taken.every(function (t, n) {
          return n === own || box[2] < t[0] || box[0] > t[2] || box[3] < t[1] || box[1] > t[3];
        });
        if (!free) { continue; }
        taken.push(box);
        return { x: p.label[0], y: p.label[1], text: p.label[2], showarrow: false,
                 xshift: cx - p.x, yshift: p.y - cy, font: { size: font } };
      }
      return null;  // No room: the point's name stays in its hover text and in the table.
    }).filter(Boolean);
  }

  function draw(box, width_px) {
    var drawn = spec(box), height_px = Number(box.dataset.height);
    var layout = drawn.layout;
    layout.width = width_px || box.clientWidth;
    layout.height = height_px;
    layout.annotations = (layout.annotations || []).concat(
      drawn.labels.length ? labels(drawn, layout.width, height_px) : []);
    return Plotly.react(box, drawn.data, layout, OPTIONS).then(function () {
      box.dataset.drawn = "yes";
    });
  }

  function all(width_px) { plots.forEach(function (box) { draw(box, width_px); }); }

  document.querySelectorAll(".plot").forEach(function (box) { plots.push(box); });
  all();
  var waiting, known_width = window.innerWidth;
  window.addEventListener("resize", function () {
    // A phone's browser bar changes the height only: nothing to draw again.
    if (window.innerWidth === known_width) { return; }
    known_width = window.innerWidth;
    clearTimeout(waiting);
    waiting = setTimeout(function () { all(); }, 150);
  });
  window.addEventListener("beforeprint", function () { all(PRINT_WIDTH_PX); });
  window.addEventListener("afterprint", function () { all(); });
})();
