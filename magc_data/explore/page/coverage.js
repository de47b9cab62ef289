// The coverage map: every tile a square in its place. Squares are painted straight into pixels, so that a hundred
// thousand of them follow the hand; where they are big enough, the pictures themselves lie on them.

const coverage = (() => {
  const canvas = element("map");
  const context = canvas.getContext("2d", { alpha: false });
  const tip = element("tip");
  const deepest = rangeOf(zooms)[1];
  // The plane is measured in tiles of the deepest zoom.
  const left = new Float64Array(count);
  const top = new Float64Array(count);
  const side = new Float64Array(count);
  for (let i = 0; i < count; i++) {
    side[i] = squares ? squares.side[i] : 2 ** (deepest - zooms[i]);
    left[i] = squares ? squares.left[i] : xs[i] * side[i];
    top[i] = squares ? squares.top[i] : ys[i] * side[i];
  }
  // Of a square, x and y are the place that its centre is in: it holds points of places so far away.
  const squareReach = squares ? Math.ceil(rangeOf(side)[1] / 2) : 0;
  const lookup = new Map(); // zoom -> place -> tile
  for (let i = 0; i < count; i++) {
    if (!lookup.has(zooms[i])) lookup.set(zooms[i], new Map());
    lookup.get(zooms[i]).set(xs[i] * 2 ** 26 + ys[i], i);
  }
  const view = { x: 0, y: 0, px: 1 }; // the plane's point in the middle, and pixels of a tile's side
  let width = 0;
  let height = 0;
  let ratio = 1;
  let image = null;
  let pixels = null;
  let hovered = -1;
  let colors = new Uint32Array(count);
  let touched = false; // by hand: from then on a new size of the window keeps the view

  // --- colours ---
  const chooser = element("color-by");
  const groups = {};
  for (const [id, each] of colorings) {
    if (each.group && !groups[each.group]) chooser.append((groups[each.group] = Object.assign(make("optgroup"), { label: each.group })));
    (groups[each.group] || chooser).append(Object.assign(make("option", "", each.label), { value: id }));
  }
  const recolor = () => {
    const coloring = colorings.get(chooser.value);
    colors = Uint32Array.from({ length: count }, (_, tile) => packedColor(coloring.colorOf(tile)));
    element("map-legend").replaceChildren(coloring.legend());
    repaint();
  };
  chooser.addEventListener("change", recolor);
  if (!colorings.has("split")) chooser.value = count <= FEW ? "pictures" : classes.length ? "main" : "none";

  // --- painting ---
  const MIN_SIDE_PX = 2; // of a square: a lonely tile of a continent is seen too
  const PICTURE_SIDE_PX = { asked: 12, unasked: 64 };
  let wanted = false;
  const repaint = () => {
    if (wanted) return;
    wanted = true;
    requestAnimationFrame(paint);
  };

  const paint = () => {
    wanted = false;
    if (!width) return;
    if (!image || image.width !== canvas.width || image.height !== canvas.height) {
      image = context.createImageData(canvas.width, canvas.height);
      pixels = new Uint32Array(image.data.buffer);
    }
    const ground = parsed(cssColor("--ground"));
    pixels.fill(packedColor(ground));
    const faint = packedColor(blend(ground, parsed(cssColor("--muted")), 0.28));
    const scale = view.px * ratio;
    const [columnsPx, rowsPx] = [canvas.width, canvas.height];
    const originX = columnsPx / 2 - view.x * scale;
    const originY = rowsPx / 2 - view.y * scale;
    const least = Math.round(MIN_SIDE_PX * ratio);
    const pictureSide = chooser.value === "pictures" ? PICTURE_SIDE_PX.asked : PICTURE_SIDE_PX.unasked;
    const gap = view.px >= 10 && view.px < pictureSide ? Math.max(1, Math.round(ratio)) : 0; // a mosaic has no gaps
    const pictured = [];
    for (let pass = 0; pass < 2; pass++) {
      for (let i = 0; i < count; i++) {
        if (state.passing[i] !== pass) continue;
        const x0 = Math.round(left[i] * scale + originX);
        const y0 = Math.round(top[i] * scale + originY);
        const x1 = Math.max(Math.round((left[i] + side[i]) * scale + originX) - gap, x0 + least);
        const y1 = Math.max(Math.round((top[i] + side[i]) * scale + originY) - gap, y0 + least);
        if (x1 <= 0 || y1 <= 0 || x0 >= columnsPx || y0 >= rowsPx) continue;
        const color = pass ? colors[i] : faint;
        const from = Math.max(x0, 0);
        const to = Math.min(x1, columnsPx);
        for (let y = Math.max(y0, 0), end = Math.min(y1, rowsPx); y < end; y++) pixels.fill(color, y * columnsPx + from, y * columnsPx + to);
        if (pass && (x1 - x0) / ratio >= pictureSide) pictured.push([i, x0, y0, x1 - x0, y1 - y0]);
      }
    }
    context.putImageData(image, 0, 0);
    pictured.forEach(drawPicture);
    drawGraticule();
    if (hovered >= 0 && hovered !== state.selected) drawRing(hovered, cssColor("--ink"), 1.5);
    if (state.selected >= 0) drawRing(state.selected, cssColor("--accent"), 3);
    drawScale();
  };

  const MOST_LOADED = 6000; // a big screen full of squares of 12 pixels has more; those are seldom looked at
  const loaded = new Map(); // address -> picture, the last used at the end
  const drawPicture = ([tile, x, y, w, h]) => {
    const id = `${tile}-${state.flip}`;
    let picture = loaded.get(id);
    if (!picture) {
      const address = pictureOf(tile, state.flip);
      if (!address) return;
      picture = new Image();
      picture.addEventListener("load", repaint);
      picture.src = address;
    }
    loaded.delete(id);
    loaded.set(id, picture);
    if (loaded.size > MOST_LOADED) loaded.delete(loaded.keys().next().value);
    context.imageSmoothingEnabled = state.flip === "image";
    if (picture.complete && picture.naturalWidth) context.drawImage(picture, x, y, w, h);
  };

  const toScreen = (x, y) => [((x - view.x) * view.px + width / 2) * ratio, ((y - view.y) * view.px + height / 2) * ratio];
  const drawRing = (tile, color, thickness) => {
    const [x, y] = toScreen(left[tile], top[tile]);
    const px = Math.max(side[tile] * view.px * ratio, 7 * ratio);
    const shift = (px - side[tile] * view.px * ratio) / 2;
    context.lineWidth = (thickness + 2) * ratio;
    context.strokeStyle = cssColor("--surface");
    context.strokeRect(x - shift, y - shift, px, px);
    context.lineWidth = thickness * ratio;
    context.strokeStyle = color;
    context.strokeRect(x - shift, y - shift, px, px);
  };

  const STEPS = [30, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002];
  const planeY = (lat) => ((1 - Math.asinh(Math.tan((lat * Math.PI) / 180)) / Math.PI) / 2) * 2 ** deepest;
  const planeX = (lon) => ((lon + 180) / 360) * 2 ** deepest;
  const drawGraticule = () => {
    const corner = (sx, sy) => placeOf(deepest, view.x + (sx - width / 2) / view.px, view.y + (sy - height / 2) / view.px);
    const [north, south] = [corner(0, 0), corner(width, height)];
    const step = STEPS.findLast((each) => (south.lon - north.lon) / each <= width / 130) || STEPS[0];
    const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
    context.strokeStyle = cssColor("--graticule");
    context.fillStyle = cssColor("--ink");
    context.lineWidth = ratio;
    context.font = `${11 * ratio}px system-ui, sans-serif`;
    const label = (text, x, y) => {
      context.lineWidth = 3 * ratio;
      context.strokeStyle = cssColor("--ground");
      context.lineJoin = "round";
      context.strokeText(text, x, y);
      context.fillText(text, x, y);
      context.strokeStyle = cssColor("--graticule");
      context.lineWidth = ratio;
    };
    const line = (x0, y0, x1, y1) => {
      context.beginPath();
      context.moveTo(x0, y0);
      context.lineTo(x1, y1);
      context.stroke();
    };
    const lonLines = [];
    for (let lon = Math.ceil(north.lon / step) * step; lon <= south.lon; lon += step) lonLines.push(lon);
    const latLines = [];
    for (let lat = Math.ceil(south.lat / step) * step; lat <= north.lat; lat += step) latLines.push(lat);
    for (const lon of lonLines) {
      const x = Math.round(toScreen(planeX(lon), 0)[0]) + 0.5;
      line(x, 0, x, canvas.height);
    }
    for (const lat of latLines) {
      const y = Math.round(toScreen(0, planeY(lat))[1]) + 0.5;
      line(0, y, canvas.width, y);
    }
    context.textAlign = "left";
    for (const lat of latLines) {
      const y = toScreen(0, planeY(lat))[1];
      if (y > 60 * ratio && y < canvas.height - 70 * ratio) label(`${Math.abs(lat).toFixed(digits)}° ${lat < 0 ? "S" : "N"}`, 8 * ratio, y - 4 * ratio);
    }
    context.textAlign = "center";
    for (const lon of lonLines) {
      const x = toScreen(planeX(lon), 0)[0];
      if (x > 190 * ratio && x < canvas.width - 70 * ratio) label(`${Math.abs(lon).toFixed(digits)}° ${lon < 0 ? "W" : "E"}`, x, 16 * ratio);
    }
  };

  const drawScale = () => {
    const lat = placeOf(deepest, view.x, view.y).lat;
    const metresPerPx = (40075016.686 * Math.cos((lat * Math.PI) / 180)) / 2 ** deepest / view.px;
    const most = metresPerPx * 110;
    const power = 10 ** Math.floor(Math.log10(most));
    const metres = [5, 2, 1].map((each) => each * power).find((each) => each <= most);
    element("scale-bar").firstElementChild.style.width = `${metres / metresPerPx}px`;
    element("scale-bar").lastElementChild.textContent = metres >= 1000 ? `${grouped(metres / 1000)} km` : `${decimal(metres)} m`;
  };

  // --- moving ---
  const fit = () => {
    let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
    for (let i = 0; i < count; i++) {
      x0 = Math.min(x0, left[i]);
      y0 = Math.min(y0, top[i]);
      x1 = Math.max(x1, left[i] + side[i]);
      y1 = Math.max(y1, top[i] + side[i]);
    }
    Object.assign(view, { x: (x0 + x1) / 2, y: (y0 + y1) / 2, px: Math.min((width - 56) / (x1 - x0), (height - 88) / (y1 - y0), 256) });
    repaint();
  };
  const zoomBy = (factor, sx = width / 2, sy = height / 2) => {
    const px = Math.min(Math.max(view.px * factor, 64 / 2 ** deepest), 512);
    view.x += (sx - width / 2) * (1 / view.px - 1 / px);
    view.y += (sy - height / 2) * (1 / view.px - 1 / px);
    view.px = px;
    touched = true;
    repaint();
  };
  const panBy = (dx, dy) => {
    view.x -= dx / view.px;
    view.y -= dy / view.px;
    touched = true;
    repaint();
  };
  const reveal = (tile) => {
    const [x, y] = [(left[tile] + side[tile] / 2 - view.x) * view.px, (top[tile] + side[tile] / 2 - view.y) * view.px];
    if (Math.abs(x) > width / 2 - 20 || Math.abs(y) > height / 2 - 20) {
      view.x = left[tile] + side[tile] / 2;
      view.y = top[tile] + side[tile] / 2;
    }
    repaint();
  };

  // The tile under a point of the canvas, or the nearest within two pixels where squares are tiny; -1: none.
  const tileAt = (sx, sy) => {
    const x = view.x + (sx - width / 2) / view.px;
    const y = view.y + (sy - height / 2) / view.px;
    for (const [zoom, tiles] of lookup) {
      const size = 2 ** (deepest - zoom);
      const [column, row] = [Math.floor(x / size), Math.floor(y / size)];
      for (let dy = -squareReach; squares && dy <= squareReach; dy++) {
        for (let dx = -squareReach; dx <= squareReach; dx++) {
          const found = tiles.get((column + dx) * 2 ** 26 + row + dy);
          if (found === undefined) continue;
          if (x >= left[found] && x < left[found] + side[found] && y >= top[found] && y < top[found] + side[found]) return found;
        }
      }
      if (squares && view.px * size >= 3) continue;
      const reach = Math.min(6, Math.ceil(2 / (view.px * size)) - (view.px * size >= 3 ? 1 : 0));
      for (let r = 0; r <= reach; r++) {
        for (let dy = -r; dy <= r; dy++) {
          for (let dx = -r; dx <= r; dx++) {
            if (Math.max(Math.abs(dx), Math.abs(dy)) !== r) continue;
            const found = tiles.get((column + dx) * 2 ** 26 + row + dy);
            if (found !== undefined) return found;
          }
        }
      }
    }
    return -1;
  };

  const hover = (tile, sx, sy) => {
    if (tile !== hovered) {
      hovered = tile;
      repaint();
      if (tile >= 0) {
        const address = pictureOf(tile, state.flip);
        const picture = tip.querySelector("img");
        picture.hidden = !address;
        if (address) picture.src = address;
        tip.querySelector("b").textContent = keys[tile];
        const split = word("split", tile);
        const main = classes.length ? `${classes[mainClass[tile]].name} ${percent(classes[mainClass[tile]].values[tile])}` : "";
        tip.querySelector("span").textContent = [split, main].filter(Boolean).join(" · ");
      }
      tip.hidden = tile < 0;
    }
    if (tile >= 0) {
      tip.style.left = `${Math.min(sx + 14, width - tip.offsetWidth - 8)}px`;
      tip.style.top = `${sy + 14 + tip.offsetHeight > height ? sy - tip.offsetHeight - 10 : sy + 14}px`;
    }
  };

  const pointers = new Map();
  let moved = 0;
  const at = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    pointers.set(event.pointerId, at(event));
    if (pointers.size === 1) moved = 0;
    hover(-1);
  });
  canvas.addEventListener("pointermove", (event) => {
    const [sx, sy] = at(event);
    if (!pointers.has(event.pointerId)) {
      if (event.pointerType === "mouse") hover(tileAt(sx, sy), sx, sy);
      return;
    }
    const [px, py] = pointers.get(event.pointerId);
    moved += Math.abs(sx - px) + Math.abs(sy - py);
    if (pointers.size === 1) panBy(sx - px, sy - py);
    else {
      const other = [...pointers].find(([id]) => id !== event.pointerId)[1];
      const distance = (a, b) => Math.hypot(a[0] - b[0], a[1] - b[1]) || 1;
      zoomBy(distance([sx, sy], other) / distance([px, py], other), (sx + other[0]) / 2, (sy + other[1]) / 2);
      panBy((sx - px) / 2, (sy - py) / 2);
    }
    pointers.set(event.pointerId, [sx, sy]);
  });
  const release = (event) => {
    const wasDown = pointers.delete(event.pointerId);
    if (event.type !== "pointerup" || !wasDown || moved > 6 || pointers.size) return;
    const tile = tileAt(...at(event));
    if (tile >= 0) openTile(tile);
  };
  ["pointerup", "pointercancel"].forEach((name) => canvas.addEventListener(name, release));
  canvas.addEventListener("pointerleave", () => hover(-1));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    hover(-1);
    zoomBy(2 ** (-event.deltaY / (event.deltaMode ? 8 : 240)), ...at(event));
  }, { passive: false });
  canvas.addEventListener("dblclick", (event) => zoomBy(2, ...at(event)));
  const PAN_KEYS = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] };
  canvas.addEventListener("keydown", (event) => {
    if (PAN_KEYS[event.key]) panBy(...PAN_KEYS[event.key]);
    else if (event.key === "Enter" && tileAt(width / 2, height / 2) >= 0) openTile(tileAt(width / 2, height / 2));
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  element("zoom-in").addEventListener("click", () => zoomBy(1.6));
  element("zoom-out").addEventListener("click", () => zoomBy(1 / 1.6));
  const fitByHand = () => {
    touched = false;
    fit();
  };
  element("zoom-fit").addEventListener("click", fitByHand);

  new ResizeObserver(() => {
    ratio = Math.min(window.devicePixelRatio || 1, 2);
    [width, height] = [canvas.clientWidth, canvas.clientHeight];
    [canvas.width, canvas.height] = [Math.round(width * ratio), Math.round(height * ratio)];
    if (touched) repaint();
    else fit();
  }).observe(canvas);
  on("selected", () => state.selected >= 0 && reveal(state.selected));
  on("filtered", repaint);
  on("flipped", repaint);
  on("themed", recolor);
  return { zoomBy, fit: fitByHand, recolor, view, paint };
})();
