// Putting it together: the head, the sources, keys, dark and light, panels on small screens.

const KEYS = [
  ["← →", "previous, next tile"],
  ["m", "flip all pictures between image and map"],
  ["s", "swipe"],
  ["i p o", "image, map (plan), overlay"],
  ["[ ]", "move the divider"],
  ["+ − 0", "zoom the coverage in, out, show everything"],
  ["/", "search by key"],
  ["f", "filters"],
  ["r", "reset the filters"],
  ["t", "dark or light"],
  ["?", "these keys"],
  ["Esc", "close"],
];

const sourceLine = (source) => `${source.role === "imagery" ? "Imagery" : source.role === "vectors" ? "Map" : source.role}: ${source.attribution} (${source.licence})`;
const fillSources = () => {
  element("sources").replaceChildren(...page.sources.map((source) => make("span", source.redistributable ? "" : "restricted", sourceLine(source))));
  element("source-details").replaceChildren(...page.sources.map((source) => {
    const box = make("section");
    box.append(make("h3", "", `${source.role}: ${source.name}`), make("p", "", source.attribution), make("p", "", `Licence: ${source.licence}`), make("p", "", source.terms));
    if (!source.redistributable) box.append(make("p", "restricted", "Its pictures may not be passed on, nor may a page that holds them."));
    return box;
  }));
  element("keys").replaceChildren(...KEYS.flatMap(([key, what]) => [make("dt", "", key), make("dd", "", what)]));
};

const fillHead = () => {
  const resolution = [...new Set(rangeOf(gsd_m).map((metres) => metres.toFixed(2)))].join(" to ");
  const zoom = squares ? "" : `zoom ${[...new Set(rangeOf(zooms))].join(" to ")} · `;
  let km2 = 0;
  for (const metres of gsd_m) km2 += (metres * 256) ** 2 / 1e6;
  element("title").textContent = page.title;
  element("summary").textContent = `${grouped(count)} tiles · ${km2 < 10 ? km2.toFixed(1) : grouped(Math.round(km2))} km² · ${zoom}${resolution} m/px`;
  const notices = [];
  if (inPage && pictures.held < count) notices.push(`This page holds pictures of ${grouped(pictures.held)} of its ${grouped(count)} tiles, ${pictures.size_px} pixels a side; the others are drawn as stripes of their classes. magc-data explore --serve shows every tile.`);
  const kept = page.sources.filter((source) => !source.redistributable && source.role === "imagery");
  if (inPage && kept.length) notices.push(`Holds pictures of ${kept.map((source) => source.name).join(", ")} that may not be passed on: keep this file to yourself.`);
  element("notice").textContent = notices.join(" ");
  element("notice").hidden = !notices.length;
};

// --- dark and light ---
const root = document.documentElement;
const prefersDark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : prefersDark.matches);
const turnTheme = () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  tell("themed");
};
prefersDark.addEventListener("change", () => tell("themed"));
element("theme").addEventListener("click", turnTheme);

// On paper it is always light, the canvas too.
addEventListener("beforeprint", () => {
  root.dataset.screenTheme = root.dataset.theme || "";
  root.dataset.theme = "light";
  coverage.paint();
});
addEventListener("afterprint", () => {
  if (root.dataset.screenTheme) root.dataset.theme = root.dataset.screenTheme;
  else delete root.dataset.theme;
  coverage.paint();
});

// --- panels ---
const toggleFilters = (open = !document.body.classList.contains("filters-open")) => {
  document.body.classList.toggle("filters-open", open);
  element("show-filters").setAttribute("aria-expanded", open);
  if (open) document.querySelector("#filters .chip, #filters input")?.focus();
};
element("show-filters").addEventListener("click", () => toggleFilters());
document.querySelectorAll("[data-closes]").forEach((button) => button.addEventListener("click", () => closePanels()));
const closePanels = () => {
  document.body.classList.remove("tile-open");
  if (document.body.classList.contains("filters-open")) toggleFilters(false);
};
element("help").addEventListener("click", () => element("about").showModal());
element("close-about").addEventListener("click", () => element("about").close());
element("about").addEventListener("click", (event) => event.target === element("about") && element("about").close());

const showFlip = () => {
  for (const which of ["image", "map"]) element(`flip-${which}`).setAttribute("aria-pressed", state.flip === which);
};
on("flipped", showFlip);
element("flip-image").addEventListener("click", () => flip("image"));
element("flip-map").addEventListener("click", () => flip("map"));

const turnOver = () => {
  flip(state.flip === "image" ? "map" : "image");
  tileView.setMode(state.flip);
};
const ACTIONS = {
  ArrowLeft: () => grid.step(-1),
  ArrowRight: () => grid.step(1),
  m: turnOver,
  s: () => tileView.setMode("swipe"),
  i: () => tileView.setMode("image"),
  p: () => tileView.setMode("map"),
  o: () => tileView.setMode("overlay"),
  "[": () => tileView.move(-5),
  "]": () => tileView.move(5),
  "+": () => coverage.zoomBy(1.6),
  "=": () => coverage.zoomBy(1.6),
  "-": () => coverage.zoomBy(1 / 1.6),
  0: () => coverage.fit(),
  "/": () => element("query").focus(),
  f: () => toggleFilters(),
  r: () => filters.reset(),
  t: turnTheme,
  "?": () => element("about").showModal(),
  Escape: closePanels,
};
const isTyping = (target) => target.matches("input[type=search], select") || element("about").open;
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
  if (event.target.matches("input[type=range]") && event.key.startsWith("Arrow")) return; // the slider's own
  const action = Object.hasOwn(ACTIONS, event.key) && ACTIONS[event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

// The address names the tile, so that a place in a dataset can be sent to a colleague.
const isOwnWindow = page.layout === "page";
const readAddress = () => keys.indexOf(decodeURIComponent(location.hash.slice(1)));
if (isOwnWindow) {
  on("selected", () => history.replaceState(null, "", `#${encodeURIComponent(keys[state.selected])}`));
  addEventListener("hashchange", () => readAddress() >= 0 && openTile(readAddress()));
}

document.body.classList.add(`layout-${page.layout}`);
fillHead();
fillSources();
coverage.recolor();
filters.apply();
const named = isOwnWindow ? readAddress() : -1;
if (named >= 0) openTile(named);
else {
  // The tile with the most on its map says most at first sight.
  const background = classes[0];
  let first = 0;
  if (background) for (let i = 1; i < count; i++) if (background.values[i] < background.values[first]) first = i;
  select(first);
}
root.dataset.ready = "";
