// The browser's telling: the library as WebAssembly makes the kernels of an image and runs windows, and every byte is compared
// with the host's. `tell` needs no page, so that node runs it too.
"use strict";

function bytesOf(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

function textAt(memory, at) {
  const bytes = new Uint8Array(memory.buffer, at);
  return new TextDecoder().decode(bytes.slice(0, bytes.indexOf(0)));
}

// The library with one image opened. `kernel(i)` and `run(window)` give int8 arrays of their own.
async function load(wasm, image) {
  const { instance } = await WebAssembly.instantiate(wasm, {});
  const c = instance.exports;
  const view = (at, bytes) => new Uint8Array(c.memory.buffer, at, bytes);
  const take = (bytes) => {
    const at = c.take(bytes);
    if (at === 0) throw new Error("the browser gives no more memory");
    return at;
  };
  const check = (code) => {
    if (code !== 0) throw new Error(textAt(c.memory, c.error_text(code)));
  };
  const at = take(image.length);
  view(at, image.length).set(image);
  check(c.open(at, image.length));
  const x = take(c.input_bytes()), y = take(c.output_bytes()), digest = take(32);
  const room = take(Math.max(1, ...Array.from({ length: c.kernels() }, (_, i) => c.kernel_bytes(i))));
  return {
    version: textAt(c.memory, c.version()),
    backend: textAt(c.memory, c.backend()),
    input: c.input_bytes(),
    kernels: c.kernels(),
    kernel(i) {
      const n = c.kernel_bytes(i);
      check(c.synthesise(i, room, n));
      c.sha256(room, n, digest);
      const sha256 = Array.from(view(digest, 32), (b) => b.toString(16).padStart(2, "0")).join("");
      return { weights: new Int8Array(view(room, n).slice().buffer), sha256 };
    },
    run(window) {
      view(x, c.input_bytes()).set(new Uint8Array(window.buffer, window.byteOffset, window.length));
      check(c.run(x, y));
      return new Int8Array(view(y, c.output_bytes()).slice().buffer);
    },
  };
}

// How many of two arrays' bytes differ; what one has more counts as different.
function differing(a, b) {
  let count = Math.abs(a.length - b.length);
  for (let i = 0; i < Math.min(a.length, b.length); i++) count += a[i] !== b[i];
  return count;
}

const int8 = (base64) => new Int8Array(bytesOf(base64).buffer);

// One source's kernels and logits beside the host's.
async function tell(wasm, source) {
  const image = await load(wasm, bytesOf(source.image));
  let began = performance.now();
  const kernels = source.kernels.map((host, i) => {
    const { weights, sha256 } = image.kernel(i);
    const differ = differing(weights, int8(host.weights));
    return { weights, sha256, differ: sha256 === host.sha256 ? differ : Math.max(differ, 1), bytes: weights.length };
  });
  if (image.kernels !== kernels.length) throw new Error(`the image has ${image.kernels} kernels, the host gave ${kernels.length}`);
  const synthesis = performance.now() - began;
  const all = int8(source.windows), expected = int8(source.logits), windows = [];
  const classes = expected.length / source.count;
  began = performance.now();
  for (let i = 0; i < source.count; i++) {
    const logits = image.run(all.subarray(i * image.input, (i + 1) * image.input));
    windows.push({ logits, differ: differing(logits, expected.subarray(i * classes, (i + 1) * classes)) });
  }
  const inference = (performance.now() - began) / Math.max(1, source.count);
  const sum = (rows, key) => rows.reduce((total, row) => total + row[key], 0);
  return {
    image, kernels, windows, synthesis, inference,
    compared: sum(kernels, "bytes") + expected.length,
    differ: sum(kernels, "differ") + sum(windows, "differ"),
  };
}

if (typeof module !== "undefined") module.exports = { tell, bytesOf };

// ---- the page

function heatMap(canvas, weights, columns) {
  const rows = Math.ceil(weights.length / columns), context = canvas.getContext("2d");
  canvas.width = columns;
  canvas.height = rows;
  const pixels = context.createImageData(columns, rows);
  weights.forEach((w, i) => { // blue below zero, white at it, vermillion above
    const t = Math.min(1, Math.abs(w) / 127), end = w < 0 ? [0, 114, 178] : [213, 94, 0];
    end.forEach((v, k) => { pixels.data[4 * i + k] = Math.round(255 + (v - 255) * t); });
    pixels.data[4 * i + 3] = 255;
  });
  context.putImageData(pixels, 0, 0);
}

function trace(canvas, window, step) {
  const context = canvas.getContext("2d"), n = Math.floor(window.length / step);
  canvas.width = 900;
  canvas.height = 180;
  context.strokeStyle = "#0072b2";
  context.lineWidth = 1.5;
  context.beginPath();
  for (let i = 0; i < n; i++) {
    const x = (i / Math.max(1, n - 1)) * 900, y = 90 - (window[i * step] / 128) * 84;
    if (i) context.lineTo(x, y); else context.moveTo(x, y);
  }
  context.stroke();
}

function probabilities(logits, scale) {
  const top = Math.max(...logits), e = Array.from(logits, (q) => Math.exp(scale * (q - top)));
  const sum = e.reduce((a, b) => a + b, 0);
  return e.map((v) => v / sum);
}

function interact(section, source, told) {
  const find = (name) => section.querySelector(`[data-role="${name}"]`);
  const kernel = find("kernel"), window = find("window"), gain = find("gain"), all = int8(source.windows);
  const showKernel = () => {
    const i = Number(kernel.value), host = source.kernels[i];
    heatMap(find("heat"), told.kernels[i].weights, host.columns);
    find("heat").setAttribute("aria-label", `kernel of ${host.name}, ${host.shape}, made in this browser`);
  };
  const showWindow = () => {
    const i = Number(window.value), by = Number(gain.value), zero = source.zero_point, size = told.image.input;
    const x = all.slice(i * size, (i + 1) * size).map((v) => Math.max(-128, Math.min(127, Math.round(zero + by * (v - zero)))));
    trace(find("trace"), x, source.channels);
    const logits = told.image.run(x);
    let words = `logits ${Array.from(logits).join(", ")}`;
    if (source.logit_scale) {
      const p = probabilities(logits, source.logit_scale);
      words += "; " + p.map((v, k) => `${source.classes[k] ?? "class " + k} ${v.toFixed(4)}`).join(", ");
    }
    find("said").textContent = `${words} (amplitude times ${by.toFixed(2)})`;
    find("trace").setAttribute("aria-label", `window ${i + 1}: ${words}`);
  };
  if (kernel) { kernel.addEventListener("change", showKernel); showKernel(); }
  window.addEventListener("change", showWindow);
  gain.addEventListener("input", showWindow);
  showWindow();
  find("controls").hidden = false;
}

async function page() {
  const data = JSON.parse(document.getElementById("browser-data").textContent), wasm = bytesOf(data.wasm);
  for (const source of data.sources) {
    const section = document.getElementById(source.section), status = section.querySelector("[role=status]");
    try {
      const told = await tell(wasm, source);
      const fill = (prefix, i, cells) => cells.forEach((text, k) => {
        const cell = section.querySelector(`[data-cell="${prefix}${i}-${k}"]`);
        cell.textContent = text;
        cell.classList.remove("absent");
      });
      told.kernels.forEach((row, i) => fill("kernel", i, [row.sha256.slice(0, 16), row.differ.toLocaleString("en")]));
      told.windows.forEach((row, i) => fill("window", i, [Array.from(row.logits).join(", "), row.differ.toLocaleString("en")]));
      status.textContent = `This browser (WebAssembly, library ${told.image.version}, ${told.image.backend} kernels) against the host: ` +
        `${told.compared.toLocaleString("en")} bytes compared, ${told.differ.toLocaleString("en")} differ. ` +
        `Synthesis ${told.synthesis.toFixed(1)} ms, ${told.inference.toFixed(1)} ms a window, timed here just now.`;
      section.dataset.compared = told.compared;
      section.dataset.differ = told.differ;
      status.className = told.differ ? "callout bad" : "callout good";
      interact(section, source, told);
    } catch (error) {
      status.textContent = `NOT RUN: this browser's telling failed: ${error.message ?? error}`;
      status.className = "callout bad";
    }
  }
}

if (typeof document !== "undefined") page();
