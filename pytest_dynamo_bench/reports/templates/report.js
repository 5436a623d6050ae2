"use strict";
(() => {
  const config = {
    displayModeBar: false,
    responsive: true,
    doubleClick: "reset",
  };
  const charts = [...document.querySelectorAll(".chart")];
  const drawn = new Set();

  function layoutFor(element, layout) {
    const narrow = element.clientWidth < 560;
    const base = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: narrow ? 11 : 13 },
      margin: { l: 56, r: 16, t: 8, b: 48 },
      // So many pixels below the axis, whatever the height of the figure.
      legend: { orientation: "h", x: 0, y: -62 / (layout.height - 120), yanchor: "top" },
      dragmode: narrow ? false : "zoom",
      hoverlabel: { namelength: -1 },
      autosize: true,
    };
    return { ...base, ...layout, xaxis: { ...layout.xaxis }, yaxis: { ...layout.yaxis } };
  }

  function draw(element) {
    if (drawn.has(element)) return;
    drawn.add(element);
    const figure = JSON.parse(document.getElementById(element.dataset.figure).textContent);
    Plotly.newPlot(element, figure.data, layoutFor(element, figure.layout), config);
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
    drawn.forEach((element) => Plotly.relayout(element, { width: paper, autosize: false }));
  });
  window.addEventListener("afterprint", () => {
    drawn.forEach((element) => Plotly.relayout(element, { width: null, autosize: true }));
  });
})();
