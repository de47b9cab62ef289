// What the page knows: columns of numbers by tile, and where each tile's pictures are.

const page = JSON.parse(document.getElementById("data").textContent);

const unpack = (Type, text) => {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let i = 0; i < binary.length; i++) bytes[i] = binary.charCodeAt(i);
  return new Type(bytes.buffer);
};

const element = (id) => document.getElementById(id);
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text; // never as HTML: names come from datasets
  return made;
};

const keys = page.keys;
const count = keys.length;
const zooms = unpack(Uint8Array, page.z);
const xs = unpack(Int32Array, page.x);
const ys = unpack(Int32Array, page.y);
// Tiles of constant ground resolution are squares anywhere on the plane, in units of tiles of the one zoom above.
const squares = page.squares && {
  left: unpack(Float64Array, page.squares.left),
  top: unpack(Float64Array, page.squares.top),
  side: unpack(Float64Array, page.squares.side),
};
const gsd_m = unpack(Float32Array, page.gsd_m);

const words = {};
for (const [name, each] of Object.entries(page.words)) {
  words[name] = { values: each.values, codes: unpack(Int32Array, each.codes) };
}
const word = (name, tile) => {
  const code = words[name].codes[tile];
  return code ? words[name].values[code - 1] : null;
};

const rangeOf = (values) => {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return [low, high];
};

// A column: what can be filtered by, ordered by and coloured by.
const classes = page.classes.map((each) => {
  const values = unpack(Float32Array, each.share);
  return { name: each.name, kind: "class", values, range: rangeOf(values), css: `rgb(${each.color.join(" ")})`, color: each.color };
});
const occurring = classes.filter((each) => each.range[1] > 0);
const measured = page.measured.map((each) => {
  const values = unpack(Float32Array, each.values);
  return { name: each.name, kind: "measured", values, range: rangeOf(values) };
});
const columns = [...occurring, ...measured];

const percent = (share) => (share === 0 ? "0 %" : share < 0.001 ? "<0.1 %" : `${(share * 100).toFixed(share < 0.0995 ? 1 : 0)} %`);
const decimal = (value) => {
  if (Number.isNaN(value)) return "not measured";
  if (Number.isInteger(value)) return String(value);
  return String(+value.toPrecision(3));
};
const shown = (column, value) => (column.kind === "class" ? percent(value) : decimal(value));
const grouped = (number) => number.toLocaleString("en");

// The biggest class that is not background (the first): what a map is of. Background where it is all there is.
const mainClass = new Uint8Array(count);
for (let tile = 0; tile < count; tile++) {
  let best = 0;
  for (let c = 1; c < classes.length; c++) {
    const share = classes[c].values[tile];
    if (share > 0 && (best === 0 || share > classes[best].values[tile])) best = c;
  }
  mainClass[tile] = best;
}

const placeOf = (z, x, y) => {
  const tiles = 2 ** z;
  const lat = (Math.atan(Math.sinh(Math.PI * (1 - (2 * y) / tiles))) * 180) / Math.PI;
  return { lon: (x / tiles) * 360 - 180, lat };
};
const centreOf = (tile) => {
  if (!squares) return placeOf(zooms[tile], xs[tile] + 0.5, ys[tile] + 0.5);
  const half = squares.side[tile] / 2;
  return placeOf(zooms[tile], squares.left[tile] + half, squares.top[tile] + half);
};

// Pictures: inside the page as base64, a chunk of which becomes a string when first looked at; or from the server.
const pictures = page.pictures;
const inPage = pictures.mode === "page";
const places = inPage && {
  formats: unpack(Uint8Array, pictures.image_formats),
  chunks: unpack(Int32Array, pictures.chunks),
  starts: unpack(Int32Array, pictures.starts),
  image: unpack(Int32Array, pictures.image_lengths),
  map: unpack(Int32Array, pictures.map_lengths),
};
const chunkTexts = new Map();
const chunkText = (number) => {
  if (!chunkTexts.has(number)) chunkTexts.set(number, element(`pictures-${number}`).textContent);
  return chunkTexts.get(number);
};

// The address of a picture of a tile, `which` is image or map; null where the page does not hold it.
const pictureOf = (tile, which, size = "thumbnail") => {
  if (!inPage) return `${size}/${tile}/${which}`;
  const length = places[which][tile];
  if (!length) return null;
  const start = places.starts[tile] + (which === "map" ? places.image[tile] : 0);
  const mime = which === "map" ? pictures.map_mime_type : pictures.mime_types[places.formats[tile]];
  return `data:${mime};base64,${chunkText(places.chunks[tile]).slice(start, start + length)}`;
};
const isWhole = !inPage || pictures.size_px === 256;

// What is looked at now. `passing` is by tile; `order` lists the tiles that pass, as the grid shows them.
const state = { selected: -1, flip: "image", mode: "swipe", passing: new Uint8Array(count).fill(1), order: new Int32Array(0), position: new Int32Array(count) };

const listeners = { selected: [], filtered: [], flipped: [], themed: [] };
const on = (event, listener) => listeners[event].push(listener);
const tell = (event) => listeners[event].forEach((listener) => listener());

const select = (tile) => {
  if (tile === state.selected) return;
  state.selected = tile;
  tell("selected");
};
const flip = (to) => {
  state.flip = to;
  tell("flipped");
};

const cssColor = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const NO_SPLIT_COLOR = page.no_split_color;
const splitColors = words.split.values.map((name) => page.split_colors[name]);
const splitColor = (code) => (code ? splitColors[code - 1] : NO_SPLIT_COLOR);
const rgb = (color) => `rgb(${color.join(" ")})`;

// From little to much: dark blue over green to yellow, of even steps in lightness (viridis).
const RAMP = [[68, 1, 84], [65, 68, 135], [42, 120, 142], [34, 168, 132], [122, 209, 81], [253, 231, 37]];
const rampColor = (share) => {
  const at = Math.min(Math.max(share, 0), 1) * (RAMP.length - 1);
  const i = Math.min(Math.floor(at), RAMP.length - 2);
  return RAMP[i].map((from, c) => Math.round(from + (RAMP[i + 1][c] - from) * (at - i)));
};
