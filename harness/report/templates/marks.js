  // ------------------------------------------------------------------------------------------------------------ marks
  // People's marks on answers and blind votes, kept in this browser and saved as marks.jsonl. A mark is of a text: it applies to every variant that gave it.

  function startMarks({ run, split, variants, questions, left, right, refresh }) {
    const key = `harness-marks:${run}:${split}`;
    let kept = new Map();
    try {
      const read = JSON.parse(localStorage.getItem(key) ?? "[]");
      if (Array.isArray(read)) kept = new Map(read.filter((entry) => Array.isArray(entry) && entry.length === 2));
    } catch {
      // No storage for this page: the marks last as long as it is open.
    }
    const status = find("marks-status");

    function keep(name, line) {
      if (line === null) kept.delete(name);
      else kept.set(name, line);
      try {
        localStorage.setItem(key, JSON.stringify([...kept]));
      } catch {}
      tell();
    }

    function tell() {
      const votes = [...kept.values()].filter((line) => line.kind === "vote").length;
      status.textContent = kept.size ? `${wide.format(kept.size - votes)} marks, ${wide.format(votes)} votes, in this browser only until they are saved.` : "";
      find("marks-save").disabled = find("marks-clear").disabled = !kept.size;
    }

    /** Buttons for one answer: right, wrong, unsure, and a note. */
    function controls(at, variant, text) {
      const name = `mark\n${questions.id[at]}\n${text}`;
      const line = kept.get(name);
      const box = make("div", { class: "marking", role: "group", "aria-label": `Your mark on the answer of ${variants[variant].label}` });
      const note = make("input", { type: "text", maxlength: 10000, placeholder: "note", "aria-label": "Note" });
      note.value = line?.note ?? "";
      const set = (mark) => keep(name, mark === null ? null : { kind: "mark", split_id: split, id: questions.id[at], answer: text, variant: variants[variant].name, mark, note: note.value });
      const buttons = ["right", "wrong", "unsure"].map((mark) => {
        const button = make("button", { type: "button", "aria-pressed": String(line?.mark === mark) }, mark);
        button.addEventListener("click", () => {
          const again = button.getAttribute("aria-pressed") === "true";
          for (const other of buttons) other.setAttribute("aria-pressed", "false");
          if (!again) button.setAttribute("aria-pressed", "true");
          set(again ? null : mark);
        });
        return button;
      });
      note.addEventListener("change", () => {
        const chosen = buttons.find((button) => button.getAttribute("aria-pressed") === "true");
        if (chosen) set(chosen.textContent);
      });
      box.append(...buttons, note);
      return box;
    }

    // ------------------------------------------------------------------------------------------------------- blind votes

    let blind = false, place = 0, queue = [];

    /** A number in 0..1 that depends on nothing but the text (FNV-1a): the order on the screen is the same in every browser. */
    function drawn(text) {
      let hash = 0x811c9dc5;
      for (const character of text) hash = Math.imul(hash ^ character.codePointAt(0), 0x01000193) >>> 0;
      return (Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d) >>> 0) / 2 ** 32;
    }

    function startBlind() {
      const [a, b] = [Number(left.value), Number(right.value)];
      queue = questions.id.map((_, at) => at).filter((at) => {
        const texts = [variants[a].text[at], variants[b].text[at]];
        return texts[0] !== null && texts[1] !== null && texts[0] !== texts[1];
      });
      queue.sort((one, two) => drawn(`${split}${questions.id[one]}`) - drawn(`${split}${questions.id[two]}`));
      blind = true;
      place = Math.max(0, queue.findIndex((at) => !kept.has(voteName(at, a, b))));
      document.getElementById("browser").classList.add("blind");
      showBlind(a, b);
    }

    const voteName = (at, a, b) => `vote\n${questions.id[at]}\n${[variants[a].name, variants[b].name].sort().join("\n")}`;

    function stopBlind() {
      blind = false;
      document.getElementById("browser").classList.remove("blind");
      find("blind").setAttribute("aria-pressed", "false");
      refresh();
    }

    function showBlind(a, b) {
      const detail = find("detail");
      detail.replaceChildren();
      if (a === b || !queue.length) return void detail.append(make("p", { class: "missing" }, "Choose two variants that differ in some answer, as A and B, then start again."));
      const at = queue[place], swapped = drawn(`order${split}${questions.id[at]}`) < 0.5;
      const [first, second] = swapped ? [b, a] : [a, b];
      const vote = (choice) => {
        const [variant, other] = [variants[a], variants[b]];
        const prefers = choice === 0 ? "neither" : (choice === 1) === (first === a) ? "variant" : "other";
        keep(voteName(at, a, b), { kind: "vote", split_id: split, id: questions.id[at], answer: variant.text[at], variant: variant.name, other: other.name, other_answer: other.text[at], prefers });
        place = (place + 1) % queue.length;
        showBlind(a, b);
      };
      const button = (label, choice) => {
        const node = make("button", { type: "button", "data-vote": choice }, label);
        node.addEventListener("click", () => vote(choice));
        return node;
      };
      detail.append(
        make("p", { class: "meta" }, `Blind vote ${place + 1} of ${queue.length}: which answer is better? Keys 1, 2, and 0 for neither. Who gave which is hidden, the order is shuffled.`),
        put(make("h3", { dir: "auto" }), questions.question[at]), make("h4", {}, "Reference"), answerNode(questions.answer[at], null),
        make("h4", {}, "Answer 1"), answerNode(variants[first].text[at], null), make("h4", {}, "Answer 2"), answerNode(variants[second].text[at], null),
        make("div", { class: "marking" }, button("1 is better", 1), button("2 is better", 2), button("neither", 0)));
    }

    find("blind").addEventListener("click", () => {
      if (blind) return stopBlind();
      find("blind").setAttribute("aria-pressed", "true");
      startBlind();
    });
    document.addEventListener("keydown", (event) => {
      if (!blind || event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
      const chosen = find("detail").querySelector(`[data-vote="${CSS.escape(event.key)}"]`);
      if (chosen) chosen.click();
    });
    find("marks-save").addEventListener("click", () => save(`${run}-marks.jsonl`, "application/jsonl", [...kept.values()].map((line) => `${JSON.stringify(line)}\n`).join("")));
    find("marks-clear").addEventListener("click", () => {
      if (!confirm("Remove every mark and vote on this run from this browser?")) return;
      kept.clear();
      keep("", null);
      refresh();
    });
    find("marks").hidden = false;
    tell();
    return { controls, isBlind: () => blind, stop: stopBlind };
  }
