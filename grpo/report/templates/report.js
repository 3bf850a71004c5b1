"use strict";
// Tells the values under the pointer, or at the step chosen with the arrow keys, below each chart.
for (const figure of document.querySelectorAll("figure[data-readout]")) {
  const { origin, scale, series } = JSON.parse(figure.dataset.readout);
  const svg = figure.querySelector("svg");
  const cursor = figure.querySelector(".cursor");
  const readout = figure.querySelector(".readout");
  const steps = [...new Set(series.flatMap(([, points]) => points.map(([step]) => step)))].sort((a, b) => a - b);
  let chosen = -1;

  const show = (at) => {
    chosen = Math.max(0, Math.min(steps.length - 1, at));
    const step = steps[chosen];
    const x = origin + scale * step;
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    figure.classList.add("reading");
    const values = series.flatMap(([label, points]) => {
      const point = points.find(([other]) => other === step);
      return point ? [`${label} ${point[1]}`] : [];
    });
    readout.textContent = `step ${step}: ${values.join(", ")}`;
  };
  const hide = () => {
    chosen = -1;
    figure.classList.remove("reading");
    readout.textContent = "";
  };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const step = ((event.clientX - box.left) * svg.viewBox.baseVal.width / box.width - origin) / scale;
    let nearest = 0;
    steps.forEach((other, at) => {
      if (Math.abs(other - step) < Math.abs(steps[nearest] - step)) nearest = at;
    });
    show(nearest);
  });
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const moves = { ArrowLeft: chosen - 1, ArrowRight: chosen + 1, Home: 0, End: steps.length - 1 };
    if (event.key in moves) {
      show(moves[event.key]);
      event.preventDefault();
    }
  });
}
