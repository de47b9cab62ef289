"use strict";
(() => {
  const $ = (id) => document.getElementById(id);
  const { codecs, examples } = JSON.parse($("data").textContent);
  const ORIGINAL = "original", MAP = "map";
  const bits = (value) => value === null ? "unknown" : (value < 0.1 ? value.toFixed(4) : value.toFixed(3));
  const whole = (value) => value.toLocaleString("en");

  /* curves */
  for (const chip of document.querySelectorAll("[data-toggle]")) {
    chip.addEventListener("click", () => {
      const what = chip.dataset.toggle, shown = chip.getAttribute("aria-pressed") !== "true";
      for (const each of document.querySelectorAll(`[data-toggle="${what}"]`)) each.setAttribute("aria-pressed", shown);
      const chosen = what === "paper" ? ".plot .paper" : `.plot [data-codec="${what}"]`;
      for (const each of document.querySelectorAll(chosen)) each.toggleAttribute("data-off", !shown);
    });
  }

  /* pictures */
  function pictureOf(example, side) {
    const codec = $(`${side}-codec`).value;
    if (codec === ORIGINAL) return { label: "Original", uri: example.original, facts: "" };
    if (codec === MAP) return { label: "Map", uri: example.map, facts: "" };
    const found = example.decoded[Number($(`${side}-rate`).value)];
    return { label: codecs[found.codec].label, uri: found.uri, facts: factsOf(example, found), found };
  }

  function factsOf(example, decoded) {
    const size = decoded.bytes === null ? "size unknown" : example.on === "scenes" ? `${bits(decoded.bpp)} bits a pixel (${whole(decoded.bytes)} bytes the scene)`
      : `${whole(decoded.bytes)} bytes, ${bits(decoded.bpp)} bits a pixel`;
    return `${size}, ${decoded.psnr_db === null ? "equal to the original" : `PSNR ${decoded.psnr_db.toFixed(1)} dB`}`;
  }

  const example = () => examples[Number($("example").value)];

  function option(select, value, text) {
    const made = document.createElement("option");
    made.value = value;
    made.textContent = text;
    select.append(made);
  }

  /* The codecs of an example, then the rates of the codec; what was chosen stays chosen where it is there again. */
  function fillCodecs(side) {
    const select = $(`${side}-codec`), kept = select.value;
    select.replaceChildren();
    option(select, ORIGINAL, "Original");
    if (example().map) option(select, MAP, "Map");
    for (const codec of new Set(example().decoded.map((each) => each.codec))) option(select, String(codec), codecs[codec].label);
    if ([...select.options].some((each) => each.value === kept)) select.value = kept;
  }

  function fillRates(side, wantedBpp) {
    const select = $(`${side}-rate`), codec = $(`${side}-codec`).value;
    select.replaceChildren();
    select.hidden = codec === ORIGINAL || codec === MAP;
    if (select.hidden) return;
    example().decoded.forEach((each, place) => {
      if (each.codec === Number(codec)) option(select, String(place), `${bits(each.bpp)} bits a pixel`);
    });
    const near = nearest(example(), Number(codec), wantedBpp);
    select.value = String(example().decoded.indexOf(near));
  }

  function nearest(shown, codec, bpp) {
    const apart = (each) => (each.bpp === null ? Infinity : Math.abs(Math.log(each.bpp / bpp)));
    return shown.decoded.filter((each) => each.codec === codec).reduce((best, each) => (apart(each) < apart(best) ? each : best));
  }

  function show() {
    for (const side of ["left", "right"]) {
      const picture = pictureOf(example(), side), figure = $(side), image = figure.querySelector("img");
      if (image.src !== picture.uri) image.src = picture.uri;
      image.width = example().width;
      image.height = example().height;
      image.alt = `${example().key}: ${picture.label}${picture.facts ? ", " + picture.facts : ""}`;
      figure.querySelector("figcaption").textContent = picture.label;
      const caption = $(`${side}-caption`), name = document.createElement("b");
      name.textContent = picture.label;
      caption.replaceChildren(name, picture.facts ? ` ${picture.facts}` : "");
    }
    showStrip();
  }

  function showStrip() {
    const bpp = currentBpp();
    $("strip-heading").textContent = `All codecs near ${bits(bpp)} bits a pixel`;
    const strip = $("strip");
    strip.replaceChildren();
    const add = (label, facts, uri, chosen, act) => {
      const button = document.createElement("button"), image = document.createElement("img"), text = document.createElement("span");
      const name = document.createElement("b");
      image.src = uri;
      image.alt = "";
      image.width = example().width;
      image.height = example().height;
      name.textContent = label;
      text.append(name, ` ${facts}`);
      button.append(image, text);
      button.setAttribute("aria-pressed", String(chosen));
      button.title = "Show on the right";
      button.addEventListener("click", act);
      strip.append(button);
    };
    const right = $("right-codec").value;
    const choose = (codec, wanted) => () => {
      $("right-codec").value = codec;
      fillRates("right", wanted);
      show();
      strip.querySelector("[aria-pressed=true]")?.focus();
    };
    add("Original", "", example().original, right === ORIGINAL, choose(ORIGINAL, bpp));
    for (const codec of new Set(example().decoded.map((each) => each.codec))) {
      const found = nearest(example(), codec, bpp);
      add(codecs[codec].label, factsOf(example(), found), found.uri, right === String(codec), choose(String(codec), found.bpp));
    }
  }

  let lastBpp = null;
  function currentBpp() {
    for (const side of ["right", "left"]) {
      const { found } = pictureOf(example(), side);
      if (found && found.bpp !== null) return (lastBpp = found.bpp);
    }
    return lastBpp ?? example().decoded.find((each) => each.bpp !== null)?.bpp ?? 0.05;
  }

  function slide(share) {
    $("slider").value = share;
    $("stage").style.setProperty("--share", `${share}%`);
  }

  function openViewer() {
    examples.forEach((each, place) => option($("example"), String(place), `${each.about || each.key} (${each.on})`));
    const first = example().decoded[Math.floor(example().decoded.filter((each) => each.codec === example().decoded[0].codec).length / 2)];
    lastBpp = first?.bpp ?? 0.05;
    for (const side of ["left", "right"]) {
      fillCodecs(side);
      $(`${side}-codec`).addEventListener("change", () => { fillRates(side, currentBpp()); show(); });
      $(`${side}-rate`).addEventListener("change", show);
    }
    $("left-codec").value = ORIGINAL;
    if (first) $("right-codec").value = String(first.codec);
    fillRates("left", lastBpp);
    fillRates("right", lastBpp);
    $("example").addEventListener("change", () => {
      const bpp = lastBpp;
      for (const side of ["left", "right"]) { fillCodecs(side); fillRates(side, bpp); }
      show();
    });
    $("slider").addEventListener("input", () => slide(Number($("slider").value)));
    const stage = $("stage");
    const follow = (event) => {
      const box = stage.getBoundingClientRect();
      slide(Math.round(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width)) * 100));
    };
    stage.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      stage.setPointerCapture(event.pointerId);
      follow(event);
      $("slider").focus({ preventScroll: true });
    });
    stage.addEventListener("pointermove", (event) => { if (stage.hasPointerCapture(event.pointerId)) follow(event); });
    slide(50);
    show();
  }
  if (examples.length) openViewer();

  /* window */
  const theme = () => {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
  };
  $("theme").addEventListener("click", theme);
  document.addEventListener("keydown", (event) => {
    if (event.key === "t" && !event.ctrlKey && !event.metaKey && !event.altKey && !/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) theme();
  });
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    for (const each of folded) each.open = true;
  });
  addEventListener("afterprint", () => { for (const each of folded) each.open = false; });
  const openTarget = () => {
    const target = location.hash && document.getElementById(location.hash.slice(1));
    const details = target && target.closest("details");
    if (details) details.open = true;
  };
  addEventListener("hashchange", openTarget);
  openTarget();
  document.documentElement.dataset.ready = "";
})();
