// What the squares of the coverage map may be coloured by: split, main class, pictures, or any column.

const packedColor = ([r, g, b]) => ((255 << 24) | (b << 16) | (g << 8) | r) >>> 0;
const parsed = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)); // the style's colours are #rrggbb
const blend = (a, b, share) => a.map((from, c) => Math.round(from + (b[c] - from) * share));

const ONE_COLOR = [38, 150, 133];
const FEW = 500; // so many tiles are best seen as pictures
const colorings = (() => {
  const made = new Map(); // id -> colouring
  const addColoring = (id, label, group, colorOf, legend) => made.set(id, { label, group, colorOf, legend });
  const swatches = (entries) => () => {
    const list = make("ul", "swatches");
    for (const [color, text] of entries) {
      const item = make("li", "", text);
      const dot = make("i");
      dot.style.background = rgb(color);
      item.prepend(dot);
      list.append(item);
    }
    return list;
  };
  const ramp = (column) => () => {
    const box = make("div", "ramp");
    const strip = make("i");
    strip.style.background = `linear-gradient(90deg, ${RAMP.map(rgb).join(", ")})`;
    box.append(make("span", "", shown(column, column.range[0])), strip, make("span", "", shown(column, column.range[1])));
    return box;
  };
  if (words.split.values.length) {
    const entries = words.split.values.map((name, i) => [splitColors[i], name]);
    if (words.split.codes.includes(0)) entries.push([NO_SPLIT_COLOR, "in no split"]);
    addColoring("split", "split", "", (tile) => splitColor(words.split.codes[tile]), swatches(entries));
  }
  const mains = [...new Set(mainClass)].sort((a, b) => a - b);
  if (classes.length) addColoring("main", "main class", "", (tile) => classes[mainClass[tile]].color, swatches(mains.map((c) => [classes[c].color, classes[c].name])));
  // Pictures lie on the squares where these are big enough for them: 12 pixels when asked for, 64 in any case.
  addColoring("pictures", "pictures", "", (tile) => (classes.length ? classes[mainClass[tile]].color : NO_SPLIT_COLOR), () => make("span"));
  addColoring("none", "one colour", "", () => ONE_COLOR, () => make("span"));
  columns.forEach((column, i) => {
    const [low, high] = column.range;
    const colorOf = (tile) => {
      const value = column.values[tile];
      return Number.isNaN(value) ? NO_SPLIT_COLOR : rampColor(high > low ? (value - low) / (high - low) : 1);
    };
    addColoring(`column-${i}`, column.name, column.kind === "class" ? "Share of a class" : "Quality", colorOf, ramp(column));
  });
  return made;
})();
