// The thumbnails: only those in sight exist. Elements that scroll out are used again for those that scroll in.

const grid = (() => {
  const scroller = element("grid");
  const sheet = element("sheet");
  const GAP_PX = 8;
  const LEAST_CELL_PX = 104;
  const cells = new Map(); // position in the order -> element
  const spare = [];
  let perRow = 1;
  let cellPx = 100;
  let caption = null; // the column that the tiles are ordered by, or null

  const layOut = () => {
    const inner = scroller.clientWidth - 2 * 12;
    if (inner <= 0) return;
    perRow = Math.max(2, Math.floor((inner + GAP_PX) / (LEAST_CELL_PX + GAP_PX)));
    cellPx = Math.floor((inner - (perRow - 1) * GAP_PX) / perRow);
    sheet.style.height = `${Math.ceil(state.order.length / perRow) * (cellPx + GAP_PX)}px`;
    refresh();
  };

  const refresh = () => {
    cells.forEach((cell) => {
      cell.remove();
      spare.push(cell);
    });
    cells.clear();
    fill();
  };

  const newCell = () => {
    const cell = make("div", "cell");
    cell.setAttribute("role", "option");
    const picture = make("img");
    picture.alt = "";
    picture.draggable = false;
    picture.addEventListener("error", () => picture.getAttribute("src") && cell.classList.add("broken"));
    cell.append(picture, make("i"), make("span"));
    return cell;
  };

  const show = (cell, position) => {
    const tile = state.order[position];
    const [picture, dot, text] = cell.children;
    const address = pictureOf(tile, state.flip);
    cell.classList.remove("broken");
    cell.id = `cell-${position}`;
    cell.dataset.position = position;
    picture.hidden = !address;
    picture.className = state.flip;
    if (address) picture.src = address;
    else picture.removeAttribute("src");
    cell.style.background = address ? "" : classStripes(tile);
    dot.hidden = !words.split.values.length;
    dot.style.background = rgb(splitColor(words.split.codes[tile]));
    dot.title = word("split", tile) || "in no split";
    text.textContent = caption ? shown(caption, caption.values[tile]) : "";
    text.hidden = !caption;
    const isSelected = tile === state.selected;
    cell.classList.toggle("selected", isSelected);
    cell.setAttribute("aria-selected", isSelected);
    cell.setAttribute("aria-setsize", state.order.length);
    cell.setAttribute("aria-posinset", position + 1);
    cell.setAttribute("aria-label", [keys[tile], word("split", tile), text.textContent].filter(Boolean).join(", "));
    cell.style.width = cell.style.height = `${cellPx}px`;
    cell.style.transform = `translate(${(position % perRow) * (cellPx + GAP_PX)}px, ${Math.floor(position / perRow) * (cellPx + GAP_PX)}px)`;
  };

  // A tile without a picture in the page: what its map is of, as stripes.
  const classStripes = (tile) => {
    let from = 0;
    const stops = [];
    for (const each of occurring) {
      const to = from + each.values[tile] * 100;
      if (to > from) stops.push(`${each.css} ${from}% ${to}%`);
      from = to;
    }
    return stops.length ? `linear-gradient(135deg, ${stops.join(", ")})` : "";
  };

  const fill = () => {
    const rowPx = cellPx + GAP_PX;
    const first = Math.max(0, Math.floor(scroller.scrollTop / rowPx) - 1) * perRow;
    const last = Math.min(state.order.length, (Math.ceil((scroller.scrollTop + scroller.clientHeight) / rowPx) + 1) * perRow);
    for (const [position, cell] of cells) {
      if (position >= first && position < last) continue;
      cells.delete(position);
      spare.push(cell);
    }
    for (let position = first; position < last; position++) {
      if (cells.has(position)) continue;
      const cell = spare.pop() || newCell();
      show(cell, position);
      cells.set(position, cell);
      if (!cell.isConnected) sheet.append(cell);
    }
    for (const cell of spare) cell.remove();
    element("nothing").hidden = state.order.length > 0;
  };

  const selectedPosition = () => (state.selected >= 0 && state.passing[state.selected] ? state.position[state.selected] : -1);
  const mark = () => {
    const position = selectedPosition();
    cells.forEach((cell, at) => {
      cell.classList.toggle("selected", at === position);
      cell.setAttribute("aria-selected", at === position);
    });
    if (cells.has(position)) scroller.setAttribute("aria-activedescendant", `cell-${position}`);
    else scroller.removeAttribute("aria-activedescendant");
  };
  const reveal = () => {
    const position = selectedPosition();
    if (position >= 0) {
      const y = Math.floor(position / perRow) * (cellPx + GAP_PX);
      if (y < scroller.scrollTop) scroller.scrollTop = y;
      else if (y + cellPx + 24 > scroller.scrollTop + scroller.clientHeight) scroller.scrollTop = y + cellPx + 24 - scroller.clientHeight;
      fill();
    }
    mark();
  };

  // Tiles in the order of the index, or by a column.
  const chooser = element("order-by");
  chooser.append(Object.assign(make("option", "", "as stored"), { value: "" }));
  const groups = { class: "Share of a class", measured: "Quality" };
  for (const [kind, label] of Object.entries(groups)) {
    const ofKind = columns.filter((each) => each.kind === kind);
    if (!ofKind.length) continue;
    const group = Object.assign(make("optgroup"), { label });
    ofKind.forEach((each) => group.append(Object.assign(make("option", "", each.name), { value: String(columns.indexOf(each)) })));
    chooser.append(group);
  }
  let falling = false;
  const reorder = () => {
    caption = chooser.value === "" ? null : columns[Number(chooser.value)];
    let length = 0;
    for (let i = 0; i < count; i++) length += state.passing[i];
    const order = new Int32Array(length);
    for (let i = 0, at = 0; i < count; i++) if (state.passing[i]) order[at++] = i;
    if (caption) {
      const last = falling ? -Infinity : Infinity; // what was not measured comes at the end
      const value = Float64Array.from(caption.values, (each) => (Number.isNaN(each) ? last : each));
      order.sort((a, b) => (falling ? value[b] - value[a] : value[a] - value[b]) || a - b);
    } else if (falling) order.reverse();
    order.forEach((tile, position) => (state.position[tile] = position));
    state.order = order;
    element("shown").textContent = order.length === count ? `${grouped(count)} tiles` : `${grouped(order.length)} of ${grouped(count)} tiles`;
    element("direction").textContent = falling ? "↓" : "↑";
    layOut();
  };
  const reorderFromTop = () => {
    scroller.scrollTop = 0;
    reorder();
    mark();
  };
  chooser.addEventListener("change", () => {
    falling = chooser.value !== "" && columns[Number(chooser.value)].kind === "class"; // most of a class first
    reorderFromTop();
  });
  element("direction").addEventListener("click", () => {
    falling = !falling;
    reorderFromTop();
  });

  const step = (by) => {
    if (!state.order.length) return;
    const known = state.selected >= 0 && state.passing[state.selected];
    const position = known ? state.position[state.selected] + by : 0;
    select(state.order[Math.min(Math.max(position, 0), state.order.length - 1)]);
  };
  const pageRows = () => Math.max(1, Math.floor(scroller.clientHeight / (cellPx + GAP_PX)));
  const MOVES = {
    ArrowLeft: () => -1,
    ArrowRight: () => 1,
    ArrowUp: () => -perRow,
    ArrowDown: () => perRow,
    PageUp: () => -perRow * pageRows(),
    PageDown: () => perRow * pageRows(),
    Home: () => -count,
    End: () => count,
  };
  scroller.addEventListener("keydown", (event) => {
    if (MOVES[event.key]) step(MOVES[event.key]());
    else if (event.key === "Enter" && state.selected >= 0) openTile(state.selected);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  sheet.addEventListener("click", (event) => {
    const cell = event.target.closest(".cell");
    if (cell) openTile(state.order[Number(cell.dataset.position)]);
  });
  scroller.addEventListener("scroll", fill, { passive: true });
  new ResizeObserver(layOut).observe(scroller);
  on("selected", reveal);
  on("filtered", reorderFromTop);
  on("flipped", () => cells.forEach(show));
  return { step, reorder };
})();
