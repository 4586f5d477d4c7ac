"use strict";
// The report's behaviour: theme, sorting, figures, answers. Everything that came from outside is put in as text, never as markup.
(() => {
  const find = (id) => document.getElementById(id);
  const wide = new Intl.NumberFormat("en");

  function make(tag, attributes = {}, ...children) {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    node.append(...children);
    return node;
  }

  /** The text of a packed data block: base64 of a zlib stream. */
  async function unpack(id) {
    const packed = atob(find(id).textContent);
    const bytes = new Uint8Array(packed.length);
    for (let at = 0; at < packed.length; at++) bytes[at] = packed.charCodeAt(at);
    return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"))).text();
  }

  // ------------------------------------------------------------------------------------------------------------ theme

  const themes = ["system", "light", "dark"];

  function setTheme(theme) {
    if (theme === "system") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    find("theme").textContent = `Theme: ${theme}`;
    try {
      localStorage.setItem("harness-theme", theme);
    } catch {
      // A page opened from disk may have no storage: the choice then lasts as long as the page.
    }
    redraw();
  }

  function startTheme() {
    let theme = "system";
    try {
      theme = localStorage.getItem("harness-theme") ?? theme;
    } catch {}
    if (!themes.includes(theme)) theme = "system";
    find("theme").hidden = false;
    find("theme").addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      setTheme(theme);
    });
    setTheme(theme);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  // ------------------------------------------------------------------------------------------------------------- copy

  function startCopying() {
    for (const button of document.querySelectorAll("[data-copy]")) {
      button.hidden = false;
      button.addEventListener("click", async () => {
        const source = find(button.dataset.copy);
        try {
          await navigator.clipboard.writeText(source.textContent);
          button.textContent = "Copied";
        } catch {
          getSelection().selectAllChildren(source); // no clipboard for this page: selected, it can be copied by hand
          button.textContent = "Selected";
        }
        setTimeout(() => (button.textContent = "Copy"), 2000);
      });
    }
  }

  function startMarkdown() {
    const button = find("copy-markdown"), text = JSON.parse(find("markdown").textContent);
    button.hidden = false;
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(text);
        button.textContent = "Copied";
        setTimeout(() => (button.textContent = "Copy as Markdown"), 2000);
      } catch {
        save("report.md", "text/markdown", text); // no clipboard for this page: as a file
      }
    });
  }

  /** Offers a text as a file. */
  function save(name, type, text) {
    const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: `${type};charset=utf-8` })), download: name });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  }

  /** One cell of a CSV file; a text that a spreadsheet would run as a formula gets an apostrophe in front. */
  const cell = (value) => {
    const text = String(value ?? "").replace(/^(?=[=+\-@\t\r\n])/, "'");
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  // ---------------------------------------------------------------------------------------------------------- sorting

  function startSorting() {
    const table = find("board");
    if (!table) return;
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.firstElementChild.addEventListener("click", () => {
        const numeric = head.classList.contains("number");
        const before = head.getAttribute("aria-sort");
        const descending = before === "none" ? numeric : before === "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const key = (row) => row.cells[column].dataset.sort;
        const order = (a, b) => {
          if (key(a) === "" || key(b) === "") return (key(a) === "") - (key(b) === ""); // rows without a value stay last
          const difference = numeric ? key(a) - key(b) : key(a).localeCompare(key(b));
          return descending ? -difference : difference;
        };
        table.tBodies[0].append(...[...table.tBodies[0].rows].sort(order));
      });
    });
  }

  // ---------------------------------------------------------------------------------------------------------- figures

  const specs = JSON.parse(find("figures").textContent);
  const drawn = new Set();
  let plotly = null;

  /** A copy of a figure with the values of the page's colours in place of their names. */
  function coloured(spec) {
    const probe = document.body.appendChild(make("span", { hidden: "" }));
    const values = new Map();
    const resolve = (name) => {
      if (!values.has(name)) {
        probe.style.color = name;
        values.set(name, getComputedStyle(probe).color);
      }
      return values.get(name);
    };
    const copy = (value) => {
      if (typeof value === "string") return value.startsWith("var(--") ? resolve(value) : value;
      if (Array.isArray(value)) return value.map(copy);
      if (value && typeof value === "object") return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, copy(v)]));
      return value;
    };
    const result = copy({ data: spec.data, layout: spec.layout });
    probe.remove();
    return result;
  }

  const specOf = (figure) => specs[`${figure.dataset.figure}/${figure.dataset.metric}`] ?? specs[figure.dataset.figure];

  /** `base` with `change` laid over it: objects go key by key, figures' lists of traces one by one, all else is replaced. */
  function overlay(base, change) {
    const result = Array.isArray(base) ? [...base] : { ...base };
    for (const [key, value] of Object.entries(change)) {
      const deeper = value && typeof value === "object" && (!Array.isArray(value) || key === "data") && key in base;
      result[key] = deeper ? overlay(base[key], value) : value;
    }
    return result;
  }

  const NARROW = 400; // pixels of a figure

  function draw(figure, width) {
    let spec = specOf(figure);
    const canvas = figure.querySelector(".canvas");
    if (!spec || !window.Plotly) return;
    canvas.setAttribute("aria-label", spec.description);
    canvas.style.height = `${spec.height}px`;
    width ??= canvas.clientWidth;
    if (spec.narrow && width < NARROW) spec = overlay(spec, spec.narrow);
    const { data, layout } = coloured(spec);
    canvas.querySelectorAll(".static").forEach((node) => node.remove());
    window.Plotly.react(canvas, data, { ...layout, height: spec.height, width }, { displayModeBar: false, scrollZoom: false });
    drawn.add(figure);
  }

  /** A figure alone and as large as the window, with its values under the pointer. */
  function startEnlarging() {
    const dialog = document.body.appendChild(make("dialog", { class: "large", "aria-label": "Enlarged figure" }));
    const close = make("button", { type: "button" }, "Close"), canvas = make("div");
    close.addEventListener("click", () => dialog.close());
    dialog.addEventListener("close", () => window.Plotly?.purge(canvas));
    dialog.append(close, canvas);
    for (const figure of document.querySelectorAll("[data-figure]")) {
      const button = make("button", { type: "button", class: "enlarge" }, "Enlarge");
      button.setAttribute("aria-label", `Enlarge: ${figure.querySelector("figcaption").textContent.trim()}`);
      button.addEventListener("click", async () => {
        await loadPlotly();
        const { data, layout } = coloured(specOf(figure));
        dialog.showModal();
        window.Plotly.react(canvas, data, { ...layout, width: innerWidth - 96, height: innerHeight - 160 }, { displayModeBar: false });
      });
      figure.querySelector("figcaption").append(button);
    }
  }

  function redraw(width) {
    for (const figure of drawn) draw(figure, typeof width === "number" ? width : undefined);
  }

  /** Runs Plotly's script once; the page's policy knows its hash. */
  function loadPlotly() {
    plotly ??= unpack("plotly").then((source) => {
      document.body.append(Object.assign(document.createElement("script"), { textContent: source }));
    });
    return plotly;
  }

  function startFigures() {
    const figures = [...document.querySelectorAll("[data-figure]")];
    const first = document.querySelector("[data-figures]")?.value;
    for (const figure of figures) {
      figure.dataset.metric = first ?? "";
      const spec = specOf(figure);
      if (spec) figure.querySelector(".canvas").style.height = `${spec.height}px`;
    }
    if (!figures.length) return;
    if (!window.DecompressionStream) return; // too old to unpack Plotly: the drawings in the page stay
    for (const choice of document.querySelectorAll("[data-figures]")) {
      choice.closest("label").hidden = false;
      choice.addEventListener("change", () => {
        const targets = choice.dataset.figures.split(" ");
        for (const figure of figures) {
          if (!targets.some((target) => figure.dataset.figure.startsWith(target))) continue;
          figure.dataset.metric = choice.value;
          figure.hidden = !specOf(figure);
          if (drawn.has(figure) && !figure.hidden) draw(figure);
        }
      });
    }
    startEnlarging();
    // What comes into view is drawn first; the rest follows while the page is idle, so that it is there for printing.
    const observer = new IntersectionObserver((entries) => {
      for (const { target, isIntersecting } of entries) {
        if (!isIntersecting) continue;
        observer.unobserve(target);
        loadPlotly().then(() => drawn.has(target) || draw(target));
      }
    }, { rootMargin: "200px" });
    figures.forEach((figure) => observer.observe(figure));
    const idle = window.requestIdleCallback ?? ((work) => setTimeout(work, 50));
    const rest = () => {
      const next = figures.find((figure) => !drawn.has(figure) && !figure.hidden && specOf(figure));
      if (!next) return document.documentElement.setAttribute("data-figures-done", "");
      observer.unobserve(next);
      draw(next);
      idle(rest);
    };
    setTimeout(() => loadPlotly().then(() => idle(rest)), 800);
    let waiting = 0;
    addEventListener("resize", () => {
      clearTimeout(waiting);
      waiting = setTimeout(redraw, 150);
    });
    let theme;
    addEventListener("beforeprint", () => {
      theme = document.documentElement.dataset.theme;
      document.documentElement.dataset.theme = "light";
      redraw(660);
    });
    addEventListener("afterprint", () => {
      if (theme) document.documentElement.dataset.theme = theme;
      else delete document.documentElement.dataset.theme;
      redraw();
    });
  }

  // ------------------------------------------------------------------------------------------------------------- text

  const INVISIBLE = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b\u200e\u200f\u2028\u2029\u202a-\u202e\u2060-\u2069\ufeff\ufffe\uffff]|\p{Cs}/gu;
  const COLLAPSED = 1200; // characters of an answer that are shown at once
  const COMPARED = 300; // words of an answer that are compared with the reference

  /** Puts text into a node; characters that hide, reorder or break text are written out as their code point. */
  function put(node, text) {
    let last = 0;
    for (const match of text.matchAll(INVISIBLE)) {
      const point = `U+${match[0].charCodeAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
      node.append(text.slice(last, match.index), make("span", { class: "control", title: `character ${point}` }, point));
      last = match.index + match[0].length;
    }
    node.append(text.slice(last));
    return node;
  }

  const bare = (word) => word.toLowerCase().replace(/^[^\p{L}\p{M}\p{N}]+|[^\p{L}\p{M}\p{N})]+$/gu, "") || word;

  /** [kind, text] pieces that lead from the reference to the answer: "same", "ins" (answer only), "del" (reference only). */
  function compareWords(reference, answer) {
    const a = reference.match(/\S+/g) ?? [], b = answer.match(/\S+\s*/g) ?? [];
    if (a.length > COMPARED || b.length > COMPARED) return [["same", answer]];
    const x = a.map(bare), y = b.map((word) => bare(word.trim()));
    const longest = Array.from({ length: x.length + 1 }, () => new Uint16Array(y.length + 1));
    for (let i = x.length - 1; i >= 0; i--)
      for (let j = y.length - 1; j >= 0; j--) longest[i][j] = x[i] === y[j] ? longest[i + 1][j + 1] + 1 : Math.max(longest[i + 1][j], longest[i][j + 1]);
    const pieces = [];
    const add = (kind, text) => (pieces.at(-1)?.[0] === kind ? (pieces.at(-1)[1] += text) : pieces.push([kind, text]));
    let i = 0, j = 0;
    while (i < x.length || j < y.length) {
      if (i < x.length && j < y.length && x[i] === y[j]) { add("same", b[j++]); i++; }
      else if (j < y.length && (i >= x.length || longest[i][j + 1] >= longest[i + 1][j])) add("ins", b[j++]);
      else add("del", `${a[i++]} `);
    }
    return pieces;
  }

  /** An answer with its differences from the reference marked, collapsed when long. */
  function answerNode(text, reference) {
    const node = make("blockquote", { dir: "auto" });
    if (text === null) return node.append(make("span", { class: "quiet" }, "no answer on disk")), node;
    if (!text.trim()) return node.append(make("span", { class: "quiet" }, "(empty)")), node;
    if (text.length > COLLAPSED) {
      const shown = put(make("span"), `${text.slice(0, COLLAPSED / 2)}…`);
      const more = make("button", { type: "button", class: "more" }, `Show all ${wide.format(text.length)} characters`);
      more.addEventListener("click", () => {
        shown.replaceChildren();
        put(shown, text);
        more.remove();
      });
      node.append(shown, make("br"), more);
      return node;
    }
    const pieces = reference === null ? [["same", text]] : compareWords(reference, text);
    if (reference !== null && !pieces.some(([kind]) => kind === "same")) {
      put(node, text).append(make("span", { class: "quiet apart" }, "no word in common with the reference"));
      return node;
    }
    for (const [kind, piece] of pieces) {
      if (kind === "same") put(node, piece);
      else {
        const words = piece.trimEnd();
        node.append(put(make(kind), words), piece.slice(words.length));
      }
    }
    return node;
  }

  // ---------------------------------------------------------------------------------------------------------- answers

  const ROW = 60; // pixels, as in the style sheet
  const MARKS = { right: "●", partly: "◐", wrong: "○", unscored: "–" };

  async function startAnswers() {
    if (!find("browser") || !window.DecompressionStream) return;
    const { metrics, variants, questions, left, right, reference, formats, graded, run, split } = JSON.parse(await unpack("answers-data"));
    const total = questions.id.length;
    const list = find("list"), rows = find("rows"), detail = find("detail");
    const control = Object.fromEntries(["search", "kind", "part", "show", "left", "right", "order"].map((id) => [id, find(id)]));
    const score = (variant, at) => variants[variant].scores[at][0] ?? null;
    const markOf = (value) => (value === null ? "unscored" : value >= 1 ? "right" : value > 0 ? "partly" : "wrong");
    const alarmed = (variant, at) => {
      const { finish, note, text } = variants[variant];
      return finish[at] === "length" || finish[at] === "error" || note[at] !== undefined || (text[at] !== null && !text[at].trim());
    };
    const each = variants.map((_, variant) => variant);
    const haystack = questions.id.map((id, at) =>
      [id, questions.question[at], questions.answer[at], ...questions.references[at], ...variants.map((v) => v.text[at] ?? "")].join("\n").toLowerCase());
    const disagree = questions.id.map((_, at) => new Set(each.map((v) => variants[v].text[at])).size > 1);
    let marks = null; // set once the browser is ready
    let shown = [], chosen = -1; // positions of the questions that pass the filters; the place of the chosen one among them

    for (const [select, values] of [[control.kind, questions.kind], [control.part, questions.part]]) {
      const present = [...new Set(values.filter((value) => value !== null))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));
      for (const value of present) select.append(put(make("option", { value }), value));
      select.parentElement.hidden = present.length < 2;
    }
    for (const select of [control.left, control.right])
      variants.forEach((variant, at) => select.append(make("option", { value: at }, variant.label)));
    control.left.value = left;
    control.right.value = right;
    find("legend").textContent = `${MARKS.right} right ${MARKS.partly} partly ${MARKS.wrong} wrong ${MARKS.unscored} unscored, ⚠ answers with an alarm; from left to right: ${variants.map((v) => v.label).join(", ")}.`;

    const right1 = (variant, at) => (score(variant, at) ?? 0) >= 1;
    const known = (...values) => values.every((value) => value !== null);
    const tests = {
      newly: (at, a, b) => known(score(a, at), score(b, at)) && right1(a, at) && !right1(b, at),
      still: (at, a, b) => known(score(a, at), score(b, at)) && !right1(a, at) && !right1(b, at),
      lost: (at) => reference !== null && right1(reference, at) && formats.some((variant) => score(variant, at) !== null && !right1(variant, at)),
      wins: (at, a, b) => score(a, at) !== null && score(b, at) !== null && score(a, at) > score(b, at),
      losses: (at, a, b) => score(a, at) !== null && score(b, at) !== null && score(a, at) < score(b, at),
      disagree: (at) => disagree[at],
      differ: (at, a, b) => variants[a].text[at] !== variants[b].text[at],
      wrong: (at, a) => score(a, at) !== null && score(a, at) < 1,
      alarm: (at, a) => alarmed(a, at),
      alarms: (at) => each.some((variant) => alarmed(variant, at)),
    };

    function filter(keep = shown[chosen]) {
      const words = control.search.value.toLowerCase().split(/\s+/).filter(Boolean);
      const a = Number(control.left.value), b = Number(control.right.value), test = tests[control.show.value];
      shown = [];
      for (let at = 0; at < total; at++) {
        if (control.kind.value && questions.kind[at] !== control.kind.value) continue;
        if (control.part.value && questions.part[at] !== control.part.value) continue;
        if (test && !test(at, a, b)) continue;
        if (words.every((word) => haystack[at].includes(word))) shown.push(at);
      }
      if (control.order.value === "delta") {
        // By the metric that decides; of equals by the graded one, which separates a near miss from nonsense.
        const delta = (at, metric) => {
          const [x, y] = [variants[a].scores[at][metric] ?? null, variants[b].scores[at][metric] ?? null];
          return x === null || y === null ? 9 : x - y;
        };
        const keys = new Map(shown.map((at) => [at, [delta(at, 0), delta(at, graded)]]));
        shown.sort((one, two) => keys.get(one)[0] - keys.get(two)[0] || keys.get(one)[1] - keys.get(two)[1] || one - two);
      } else if (control.order.value === "similar") {
        shown.sort((one, two) => (questions.nearest_train[two] ?? -1) - (questions.nearest_train[one] ?? -1) || one - two);
      }
      for (const button of document.querySelectorAll(".presets button"))
        button.setAttribute("aria-pressed", String(shows[button.dataset.preset] === control.show.value && a === left && b === right));
      find("count").textContent = shown.length === total ? `${wide.format(total)} questions.` : `${wide.format(shown.length)} of ${wide.format(total)} questions.`;
      rows.style.height = `${shown.length * ROW}px`;
      rows.replaceChildren();
      chosen = Math.max(shown.indexOf(keep), shown.length ? 0 : -1);
      list.scrollTop = Math.max(0, chosen) * ROW - (chosen > 0 ? list.clientHeight / 3 : 0);
      paint();
      showDetail();
    }

    /** Only the rows in sight are in the page. */
    function paint() {
      const from = Math.max(0, Math.floor(list.scrollTop / ROW) - 4);
      const to = Math.min(shown.length, Math.ceil((list.scrollTop + list.clientHeight) / ROW) + 4);
      const present = new Map([...rows.children].map((row) => [Number(row.dataset.place), row]));
      for (const [place, row] of present) if (place < from || place >= to) row.remove();
      for (let place = from; place < to; place++) {
        const row = present.get(place) ?? rows.appendChild(rowNode(place));
        row.setAttribute("aria-selected", place === chosen);
      }
      if (chosen >= from && chosen < to) list.setAttribute("aria-activedescendant", `row-${chosen}`);
      else list.removeAttribute("aria-activedescendant");
    }

    function rowNode(place) {
      const at = shown[place];
      const marks = each.map((variant) => MARKS[markOf(score(variant, at))]).join("");
      const alarms = each.filter((variant) => alarmed(variant, at)).length;
      const tags = [questions.kind[at], alarms ? `⚠ ${alarms}` : ""].filter(Boolean).join(" · ");
      const row = make("div", { class: "row", role: "option", id: `row-${place}`, "data-place": place, "aria-posinset": place + 1, "aria-setsize": shown.length },
        put(make("p", { dir: "auto" }), questions.question[at].slice(0, 300)),
        make("div", { class: "quiet" }, make("span", { class: "marks", "aria-label": marksInWords(at) }, marks), put(make("span"), tags)));
      row.style.top = `${place * ROW}px`;
      return row;
    }

    const marksInWords = (at) => variants.map((variant, v) => `${variant.label} ${markOf(score(v, at))}`).join(", ");

    function choose(place, { scroll = true, link = true } = {}) {
      if (!shown.length) return;
      chosen = Math.min(Math.max(place, 0), shown.length - 1);
      const top = chosen * ROW;
      if (scroll && (top < list.scrollTop || top + ROW > list.scrollTop + list.clientHeight))
        list.scrollTop = top < list.scrollTop ? top : top + ROW - list.clientHeight;
      if (link) {
        try {
          history.replaceState(null, "", address(shown[chosen]));
        } catch {
          // Some browsers forbid it for pages opened from disk; the link in the details still works.
        }
      }
      paint();
      showDetail();
    }

    const address = (at) => `#q=${encodeURIComponent(questions.id[at].toWellFormed?.() ?? questions.id[at])}`;

    function showDetail() {
      if (marks?.isBlind()) return;
      detail.replaceChildren();
      detail.scrollTop = 0;
      if (chosen < 0) return detail.append(make("p", { class: "missing" }, "No question passes these filters."));
      const at = shown[chosen], reference = questions.answer[at];
      const before = make("button", { type: "button" }, "← Previous"), after = make("button", { type: "button" }, "Next →");
      before.addEventListener("click", () => choose(chosen - 1));
      after.addEventListener("click", () => choose(chosen + 1));
      before.disabled = chosen === 0;
      after.disabled = chosen === shown.length - 1;
      const facts = [["", questions.id[at]], ["row", questions.row[at]], ["kind", questions.kind[at]], ["article", questions.article[at]], ["Part", questions.part[at]],
        ["group", questions.group[at]], ["nearest to train", questions.nearest_train[at]?.toFixed(2)]];
      const meta = make("p", { class: "meta" });
      facts.filter(([, value]) => value !== null && value !== undefined).forEach(([name, value], i) => {
        meta.append(i ? " · " : "", name ? `${name} ` : "", put(make("bdi"), String(value)));
      });
      detail.append(make("nav", { "aria-label": "Questions" }, before, after, make("a", { href: address(at) }, "Link to this question")),
        put(make("h3", { dir: "auto" }), questions.question[at]), meta, make("h4", {}, "Reference"));
      const truth = answerNode(reference, null);
      truth.classList.add("reference");
      detail.append(truth);
      for (const other of questions.references[at]) detail.append(make("h4", {}, "Also accepted"), answerNode(other, null));
      for (const group of sameAnswers(at)) detail.append(...groupNodes(group, at, reference));
    }

    /** Variants by what they answered, so that seven equal answers are read once. */
    function sameAnswers(at) {
      const groups = new Map();
      for (const variant of each) {
        const { text, finish, note, scores } = variants[variant];
        const key = JSON.stringify([text[at], finish[at], note[at], scores[at]]);
        groups.set(key, [...(groups.get(key) ?? []), variant]);
      }
      return [...groups.values()];
    }

    function groupNodes(group, at, reference) {
      const { text, finish, note, scores } = variants[group[0]];
      const mark = markOf(score(group[0], at));
      const heading = make("h4", {}, `${MARKS[mark]} `, put(make("span"), group.map((variant) => variants[variant].label).join(", ")), " ",
        make("span", { class: "quiet" }, mark));
      const ends = { stop: "ended by itself", length: "cut at the length limit", error: "failed" };
      const numbers = make("p", { class: "numbers" }, metrics.map((name, m) => `${name} ${scores[at][m] === null ? "unscored" : scores[at][m].toFixed(2)}`).join(" · "));
      numbers.append(" · ", make("span", finish[at] === "stop" ? {} : { class: "note" }, ends[finish[at]] ?? "not answered"));
      if (note[at]) numbers.append(" · ", put(make("bdi", { class: "note" }), note[at]));
      return [heading, answerNode(text[at], reference), numbers, ...(marks && text[at] !== null ? [marks.controls(at, group[0], text[at])] : [])];
    }

    function followLink() {
      const match = /^#q=(.*)$/.exec(location.hash);
      if (!match) return;
      let id;
      try {
        id = decodeURIComponent(match[1]);
      } catch {
        return;
      }
      const at = questions.id.indexOf(id);
      if (at < 0) return void (find("count").textContent = "The linked question is not in this report.");
      if (!shown.includes(at)) reset();
      choose(shown.indexOf(at), { link: false });
      find("answers").scrollIntoView();
    }

    const presets = { newly: "Newly right", wrong: "Still wrong", lost: "Lost by a format" };
    const shows = { newly: "newly", wrong: "still", lost: "lost" };

    function usePreset(name) {
      if (marks?.isBlind()) marks.stop();
      control.left.value = left;
      control.right.value = right;
      for (const other of ["search", "kind", "part"]) control[other].value = "";
      control.show.value = shows[name];
      control.order.value = "delta";
      filter(-1);
    }

    function startPresets() {
      const group = document.querySelector(".presets");
      for (const [name, label] of Object.entries(presets)) {
        let fits = 0;
        for (let at = 0; at < total; at++) fits += tests[shows[name]](at, left, right);
        const button = make("button", { type: "button", "data-preset": name, "aria-pressed": "false" }, `${label} (${wide.format(fits)})`);
        button.disabled = !fits;
        group.append(button);
      }
      for (const node of document.querySelectorAll("[data-preset]")) node.addEventListener("click", () => usePreset(node.dataset.preset));
    }

    /** All questions that pass the filters: texts, then each variant's answer and score. */
    function csv() {
      const heads = ["id", "question", "reference", ...variants.map((v) => v.label), ...variants.map((v) => `${v.label}: ${metrics[0]}`)];
      const lines = shown.map((at) => [questions.id[at], questions.question[at], questions.answer[at], ...variants.map((v) => v.text[at]), ...each.map((v) => score(v, at))]);
      return `\ufeff${[heads, ...lines].map((line) => line.map(cell).join(",")).join("\r\n")}\r\n`;
    }

    function reset() {
      for (const name of ["search", "kind", "part", "show", "order"]) control[name].value = "";
      filter();
    }

    let frame = 0;
    list.addEventListener("scroll", () => {
      cancelAnimationFrame(frame);
      frame = requestAnimationFrame(paint);
    });
    new ResizeObserver(paint).observe(list);
    list.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) choose(Number(row.dataset.place), { scroll: false });
    });
    const form = document.querySelector(".filters");
    form.addEventListener("input", () => filter());
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", (event) => {
      event.preventDefault();
      control.left.value = left;
      control.right.value = right;
      reset();
    });
    const page = () => Math.max(1, Math.floor(list.clientHeight / ROW) - 1);
    list.addEventListener("keydown", (event) => {
      const move = { ArrowDown: chosen + 1, ArrowUp: chosen - 1, PageDown: chosen + page(), PageUp: chosen - page(), Home: 0, End: shown.length - 1 }[event.key];
      if (event.key === "Enter") detail.focus();
      else if (move !== undefined) choose(move);
      else return;
      event.preventDefault();
    });
    document.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
      if (marks?.isBlind()) return;
      if (event.key === "/") control.search.focus();
      else if (event.key === "j") choose(chosen + 1);
      else if (event.key === "k") choose(chosen - 1);
      else return;
      event.preventDefault();
    });
    control.search.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === "Escape") list.focus();
    });
    addEventListener("hashchange", followLink);
    find("csv").addEventListener("click", () => save(`${run}-answers.csv`, "text/csv", csv()));
    find("browser").hidden = false;
    startPresets();
    marks = startMarks({ run, split, variants, questions, left: control.left, right: control.right, refresh: () => showDetail() });
    control.order.value = "delta";
    filter();
    followLink();
    document.documentElement.setAttribute("data-answers-done", "");
  }

  // marks.js
  startTheme();
  startSorting();
  startCopying();
  startMarkdown();
  startFigures();
  // The data blocks come after this script.
  document.addEventListener("DOMContentLoaded", startAnswers);
})();
