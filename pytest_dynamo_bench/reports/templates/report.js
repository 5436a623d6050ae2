"use strict";
(() => {
  const config = {
    displayModeBar: false,
    responsive: true,
    doubleClick: "reset",
  };
  const charts = [...document.querySelectorAll(".chart")];
  const drawn = new Set();

  // The legend is at the foot of the figure, below the axis title; how many lines it takes follows
  // from the names.
  function legendRows(data, width) {
    const names = data.filter((trace) => trace.showlegend !== false).map((trace) => trace.name || "");
    const widest = Math.max(0, ...names.map((name) => 50 + 7.5 * name.length));
    const columns = Math.max(1, Math.floor((width - 70) / widest));
    return Math.ceil(names.length / columns);
  }

  function footFor(data, width) {
    return { margin: { l: 56, r: 16, t: 8, b: 56 + 21 * legendRows(data, width) } };
  }

  function layoutFor(width, figure) {
    const narrow = width < 560;
    const layout = figure.layout;
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
      legend: { orientation: "h", x: 0, y: 0, yref: "container", yanchor: "bottom" },
      dragmode: narrow ? false : "zoom",
      hoverlabel: { namelength: -1 },
      autosize: true,
      ...footFor(figure.data, width),
    };
    return { ...base, ...layout, xaxis: { ...layout.xaxis }, yaxis: { ...layout.yaxis } };
  }

  function draw(element) {
    if (drawn.has(element)) return;
    drawn.add(element);
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    Plotly.newPlot(element, figure.data, layoutFor(element.clientWidth, figure), config);
  }

  // A page of many comparisons draws what is looked at, and everything before it is printed.
  if ("IntersectionObserver" in window) {
    const observer = new IntersectionObserver(
      (entries) => {
        for (const entry of entries) {
          if (entry.isIntersecting) {
            draw(entry.target);
            observer.unobserve(entry.target);
          }
        }
      },
      { rootMargin: "600px" },
    );
    charts.forEach((element) => observer.observe(element));
  } else {
    charts.forEach(draw);
  }
  const paper = 660;
  window.addEventListener("beforeprint", () => {
    charts.forEach(draw);
    drawn.forEach((element) =>
      Plotly.relayout(element, { width: paper, autosize: false, ...footFor(element.data, paper) }),
    );
  });
  window.addEventListener("afterprint", () => {
    drawn.forEach((element) =>
      Plotly.relayout(element, {
        width: null,
        autosize: true,
        ...footFor(element.data, element.clientWidth),
      }),
    );
  });
})();
