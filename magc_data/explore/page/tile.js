// The selected tile: image and map on one stage with a divider between them, what the map is of, and the facts.

const openTile = (tile) => {
  select(tile);
  document.body.classList.add("tile-open");
};

const tileView = (() => {
  const stage = element("stage");
  const slider = element("slider");
  const images = { image: element("stage-image"), map: element("stage-map") };
  const empty = element("stage-empty");

  const divide = () => {
    const share = slider.value / 100;
    const { mode } = state;
    stage.dataset.mode = mode;
    images.map.style.clipPath = mode === "swipe" ? `inset(0 0 0 ${slider.value}%)` : "none";
    images.map.style.opacity = mode === "image" ? 0 : mode === "overlay" ? share : 1;
    element("divider").style.left = `${slider.value}%`;
    slider.setAttribute("aria-valuetext", mode === "overlay" ? `map at ${slider.value} %` : `image up to ${slider.value} %`);
    slider.setAttribute("aria-label", mode === "overlay" ? "How much of the map" : "Divider between image and map");
    for (const button of element("modes").children) button.setAttribute("aria-pressed", button.dataset.mode === mode);
  };
  const setMode = (mode) => {
    state.mode = mode;
    divide();
  };
  const move = (by) => {
    if (state.mode !== "overlay") state.mode = "swipe";
    slider.value = Number(slider.value) + by;
    divide();
  };
  slider.addEventListener("input", divide);
  element("modes").addEventListener("click", (event) => event.target.dataset.mode && setMode(event.target.dataset.mode));

  const follow = (event) => {
    const box = stage.getBoundingClientRect();
    slider.value = ((event.clientX - box.left) / box.width) * 100;
    divide();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (state.mode !== "swipe" && state.mode !== "overlay") return;
    stage.setPointerCapture(event.pointerId);
    slider.focus({ preventScroll: true });
    event.preventDefault();
    follow(event);
  });
  stage.addEventListener("pointermove", (event) => stage.hasPointerCapture(event.pointerId) && follow(event));
  Object.values(images).forEach((image) => image.addEventListener("error", () => {
    if (!image.getAttribute("src")) return;
    empty.textContent = "This picture cannot be shown: magc-data verify lists what is damaged.";
    empty.hidden = false;
  }));

  const fact = (name, value) => {
    if (value === null || value === undefined) return [];
    return [make("dt", "", name), make("dd", "", value)];
  };

  const show = () => {
    const tile = state.selected;
    document.body.classList.toggle("none-selected", tile < 0);
    if (tile < 0) return;
    element("tile-key").textContent = keys[tile];
    empty.hidden = true;
    for (const which of ["image", "map"]) {
      const address = pictureOf(tile, which, "tile");
      images[which].hidden = !address;
      if (address) images[which].src = address;
      else images[which].removeAttribute("src");
      images[which].alt = which === "image" ? `Aerial image of ${keys[tile]}` : `Map of ${keys[tile]}`;
    }
    if (images.image.hidden) {
      empty.textContent = "This page has no room for this tile's pictures: magc-data explore --serve shows every one.";
      empty.hidden = false;
    }
    const note = element("thumbnail-note");
    note.hidden = isWhole || images.image.hidden;
    note.textContent = `Thumbnail of ${pictures.size_px} pixels; --serve shows the whole tile.`;
    stage.classList.toggle("thumbnail", !isWhole);
    divide();

    const shares = occurring.map((each) => [each, each.values[tile]]).filter(([, share]) => share > 0);
    shares.sort((a, b) => b[1] - a[1]);
    element("mix").replaceChildren(...shares.map(([each, share]) => {
      const part = make("i");
      part.style.width = `${share * 100}%`;
      part.style.background = each.css;
      part.title = `${each.name} ${percent(share)}`;
      return part;
    }));
    element("mix").setAttribute("aria-label", shares.map(([each, share]) => `${each.name} ${percent(share)}`).join(", "));
    element("legend").replaceChildren(...shares.map(([each, share]) => {
      const item = make("li");
      const dot = make("i");
      dot.style.background = each.css;
      item.append(dot, make("span", "", each.name), make("b", "", percent(share)));
      return item;
    }));
    const { lon, lat } = centreOf(tile);
    const metres = gsd_m[tile] * 256;
    element("facts").replaceChildren(
      ...fact("Place", `${Math.abs(lat).toFixed(5)}° ${lat < 0 ? "S" : "N"}, ${Math.abs(lon).toFixed(5)}° ${lon < 0 ? "W" : "E"}`),
      ...fact("Resolution", `${gsd_m[tile].toFixed(3)} m/px, ${metres.toFixed(0)} m a side`),
      ...(words.split.values.length ? fact("Split", word("split", tile) || "in no split") : []),
      ...measured.flatMap((each) => fact(each.name, decimal(each.values[tile]))),
      ...fact("Taken", word("capture_date", tile)),
      ...fact("OSM of", word("osm_timestamp", tile)),
      ...fact("Shard", word("shard", tile)),
    );
    element("osm").href = `https://www.openstreetmap.org/#map=${Math.min(zooms[tile], 19)}/${lat.toFixed(6)}/${lon.toFixed(6)}`;
  };

  element("copy-key").addEventListener("click", async (event) => {
    const button = event.currentTarget;
    try {
      await navigator.clipboard.writeText(keys[state.selected]);
      button.textContent = "Copied";
    } catch {
      // Frames of notebooks may not copy: the key is marked instead, for the keyboard.
      getSelection().selectAllChildren(element("tile-key"));
      button.textContent = "Marked";
    }
    setTimeout(() => (button.textContent = "Copy"), 1200);
  });
  element("previous").addEventListener("click", () => grid.step(-1));
  element("next").addEventListener("click", () => grid.step(1));
  on("selected", show);
  return { setMode, move, show };
})();
