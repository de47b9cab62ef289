// The filters: splits as chips, class shares and quality as ranges under their histograms, and the search for a key.

const filters = (() => {
  const BINS = 32;
  const STEPS = 200;
  const shownSplits = new Set([0, ...words.split.values.map((_, i) => i + 1)]); // codes; 0 is in no split

  // --- a range of one column ---
  const facets = columns.map((column) => {
    const [low, high] = column.kind === "class" ? [0, column.range[1]] : column.range;
    const span = high - low || 1;
    const bins = new Uint8Array(count);
    const missing = BINS; // the bin of what was not measured
    for (let i = 0; i < count; i++) {
      const value = column.values[i];
      bins[i] = Number.isNaN(value) ? missing : Math.min(BINS - 1, Math.floor(((value - low) / span) * BINS));
    }
    const facet = { column, low, span, bins, from: 0, to: STEPS, all: new Int32Array(BINS + 1) };
    for (let i = 0; i < count; i++) facet.all[bins[i]]++;
    facet.isActive = () => facet.from > 0 || facet.to < STEPS;
    facet.value = (step) => low + (span * step) / STEPS;

    const box = make("div", "facet");
    const head = make("div", "facet-head");
    const name = make("span", "facet-name", column.name);
    if (column.css) {
      const dot = make("i");
      dot.style.background = column.css;
      name.prepend(dot);
    }
    facet.reading = make("output");
    head.append(name, facet.reading);
    facet.canvas = make("canvas");
    facet.canvas.setAttribute("aria-hidden", "true");
    const range = make("div", "range");
    facet.inputs = ["least", "most"].map((end) => {
      const input = make("input");
      Object.assign(input, { type: "range", min: 0, max: STEPS, step: 1, value: end === "least" ? 0 : STEPS });
      input.setAttribute("aria-label", `${column.name}, ${end}`);
      input.dataset.column = column.name;
      input.dataset.end = end;
      input.addEventListener("input", () => {
        const [least, most] = facet.inputs;
        if (end === "least" && +least.value > +most.value) least.value = most.value;
        if (end === "most" && +most.value < +least.value) most.value = least.value;
        [facet.from, facet.to] = [+least.value, +most.value];
        changed();
      });
      return input;
    });
    facet.fill = make("i");
    range.append(facet.fill, ...facet.inputs);
    box.append(head, facet.canvas, range);
    element(column.kind === "class" ? "class-facets" : "measured-facets").append(box);
    facet.box = box;
    return facet;
  });
  element("measured-filter").hidden = !measured.length;
  element("class-filter").hidden = !occurring.length;
  const absent = classes.filter((each) => !(each.range[1] > 0)).map((each) => each.name);
  element("absent").textContent = absent.length ? `In no tile: ${absent.join(", ")}` : "";

  // --- splits ---
  const splitCounts = new Int32Array(words.split.values.length + 1);
  for (const code of words.split.codes) splitCounts[code]++;
  const chips = [];
  if (words.split.values.length) {
    element("split-filter").hidden = false;
    const ranked = words.split.values.map((name, i) => [name, i + 1]);
    const usual = ["train", "val", "test"];
    ranked.sort(([a], [b]) => (usual.indexOf(a) + 1 || 9) - (usual.indexOf(b) + 1 || 9));
    for (const [name, code] of [...ranked, ["in no split", 0]]) {
      if (!splitCounts[code]) continue;
      const chip = make("button", "chip", name);
      const dot = make("i");
      dot.style.background = rgb(splitColor(code));
      chip.prepend(dot);
      chip.append(make("span", "", grouped(splitCounts[code])));
      chip.setAttribute("aria-pressed", "true");
      chip.addEventListener("click", () => {
        if (shownSplits.has(code)) shownSplits.delete(code);
        else shownSplits.add(code);
        chip.setAttribute("aria-pressed", shownSplits.has(code));
        changed();
      });
      chips.push({ chip, code });
      element("splits").append(chip);
    }
  }

  // --- applying ---
  const query = element("query");
  let waiting = false;
  const changed = () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(apply);
  };

  const apply = () => {
    waiting = false;
    const { passing } = state;
    const codes = words.split.codes;
    const wantedKey = query.value.trim();
    for (let i = 0; i < count; i++) passing[i] = shownSplits.has(codes[i]) && (!wantedKey || keys[i].includes(wantedKey)) ? 1 : 0;
    for (const facet of facets) {
      if (!facet.isActive()) continue;
      // Compared as the columns' own 32-bit numbers, so that the ends of the range belong to it.
      const least = Math.fround(facet.value(facet.from));
      const most = facet.to === STEPS ? Infinity : Math.fround(facet.value(facet.to));
      const { values } = facet.column;
      for (let i = 0; i < count; i++) if (!(values[i] >= least && values[i] <= most)) passing[i] = 0; // NaN does not pass
    }
    const active = facets.filter((facet) => facet.isActive()).length + chips.filter(({ code }) => !shownSplits.has(code)).length;
    element("active-filters").textContent = active;
    element("active-filters").hidden = !active;
    element("reset").disabled = !active && !wantedKey;
    tell("filtered");
    element("matching").textContent = state.order.length === count ? `All ${grouped(count)} tiles` : `${grouped(state.order.length)} of ${grouped(count)} tiles`;
    facets.forEach(drawFacet);
  };

  const drawFacet = (facet) => {
    const { canvas } = facet;
    if (!canvas.clientWidth) return;
    const ratio = Math.min(window.devicePixelRatio || 1, 2);
    const [width, height] = [canvas.clientWidth * ratio, canvas.clientHeight * ratio];
    if (canvas.width !== Math.round(width)) canvas.width = Math.round(width);
    if (canvas.height !== Math.round(height)) canvas.height = Math.round(height);
    const passing = new Int32Array(BINS + 1);
    for (let i = 0; i < count; i++) passing[facet.bins[i]] += state.passing[i];
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, canvas.width, canvas.height);
    let highest = 1;
    for (let bin = 0; bin < BINS; bin++) highest = Math.max(highest, facet.all[bin]);
    // Square roots: beside a thousand tiles without a building the ten with many are still seen.
    const tall = (tiles) => (tiles ? Math.max(1.5 * ratio, Math.sqrt(tiles / highest) * height) : 0);
    const step = width / BINS;
    for (const [counts, color] of [[facet.all, cssColor("--bar")], [passing, cssColor("--accent")]]) {
      context.fillStyle = color;
      for (let bin = 0; bin < BINS; bin++) context.fillRect(bin * step, height - tall(counts[bin]), step - ratio, tall(counts[bin]));
    }
    facet.box.classList.toggle("active", facet.isActive());
    facet.fill.style.left = `${(facet.from / STEPS) * 100}%`;
    facet.fill.style.right = `${100 - (facet.to / STEPS) * 100}%`;
    facet.reading.textContent = `${shown(facet.column, facet.value(facet.from))} – ${shown(facet.column, facet.value(facet.to))}`;
    facet.inputs.forEach((input) => input.setAttribute("aria-valuetext", shown(facet.column, facet.value(+input.value))));
  };
  const redraw = () => facets.forEach(drawFacet);

  const reset = () => {
    query.value = "";
    chips.forEach(({ chip, code }) => {
      shownSplits.add(code);
      chip.setAttribute("aria-pressed", "true");
    });
    facets.forEach((facet) => {
      [facet.from, facet.to] = [0, STEPS];
      [facet.inputs[0].value, facet.inputs[1].value] = [0, STEPS];
    });
    changed();
  };
  element("reset").addEventListener("click", reset);
  element("reset-here").addEventListener("click", reset);
  query.addEventListener("input", changed);
  query.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && state.order.length) openTile(state.order[0]);
    if (event.key === "Escape") {
      query.value = "";
      changed();
      query.blur();
    }
  });
  on("themed", redraw);
  new ResizeObserver(redraw).observe(element("filters"));
  return { apply, reset };
})();
