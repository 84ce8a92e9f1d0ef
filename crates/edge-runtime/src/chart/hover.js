// Says below a chart what is under the pointer or finger; without it, tooltips say the same.
for (const figure of document.querySelectorAll("figure")) {
  const readout = figure.querySelector(".readout");
  const svg = figure.querySelector("svg");
  if (!readout || !svg) continue;
  let on = null;
  const show = (event) => {
    const found = document.elementFromPoint(event.clientX, event.clientY);
    if (!found || !found.classList.contains("hit")) return;
    if (on) on.classList.remove("on");
    on = found;
    on.classList.add("on");
    readout.textContent = on.querySelector("title").textContent;
  };
  svg.addEventListener("pointermove", show);
  svg.addEventListener("pointerdown", show);
}
