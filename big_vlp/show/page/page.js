"use strict";
// All text comes from elsewhere and goes into the page as text alone, never as markup.
const PER_PAGE = 24;
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const records = data.records;
const MARKS = { right: "✓ right", partly: "◐ partly", wrong: "✗ wrong" };
const count = (number) => number.toLocaleString("en");
const compare = new Intl.Collator("en", { numeric: true }).compare;
const shown = (value, digits) => (value === null ? "–" : value.toFixed(digits));
const length = (record) => record.answer.length;
// Of records that lack a value: last, whichever comes first.
const by = (value, sign) => (a, b) => {
  const [x, y] = [value(a), value(b)];
  return x === y ? 0 : x === null ? 1 : y === null ? -1 : sign * (x - y);
};
const SORTS = {
  "as in the data": null,
  "id": (a, b) => compare(a.id, b.id),
  "score, lowest first": by((record) => record.values[0], 1),
  "score, highest first": by((record) => record.values[0], -1),
  "IoU, lowest first": by((record) => record.iou, 1),
  "IoU, highest first": by((record) => record.iou, -1),
  "longest answer first": by(length, -1),
  "shortest answer first": by(length, 1),
};
let found = records;
let page = 0;

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function verdictOf(record) {
  const score = record.values[0];
  if (data.right === null || score === null) return null;
  return score >= data.right ? "right" : score > 0 ? "partly" : "wrong";
}

function tally(values) {
  const counts = new Map();
  for (const value of values) counts.set(value, (counts.get(value) || 0) + 1);
  return counts;
}

function option(value, text) {
  const made = element("option", "", text);
  made.value = value;
  return made;
}

function addVerdict(value, text, checked) {
  const label = element("label");
  const input = element("input");
  Object.assign(input, { type: "radio", name: "verdict", value, checked });
  label.append(input, text);
  byId("verdicts").append(label);
}

function setUp() {
  for (const record of records) {
    record.verdict = verdictOf(record);
    const right = record.right.map(([text]) => text);
    record.searched = [record.id, record.question, record.answer, ...right].join("\n").toLowerCase();
  }
  const part = records.length === data.total ? "" : `${count(records.length)} of `;
  byId("summary").textContent =
    `${part}${count(data.total)} questions · ${data.metrics[0]} ${shown(data.score, 4)}`;
  byId("weighted").hidden = !data.weighted;
  byId("key").hidden = !records.some((record) => record.true.length || record.written.length);
  for (const [name, value] of data.scores) {
    const row = element("tr");
    row.append(element("th", "", name), element("td", "", shown(value, 4)));
    byId("scores").append(row);
  }
  const verdicts = tally(records.map((record) => record.verdict));
  byId("verdicts").hidden = data.right === null;
  addVerdict("", `all ${count(records.length)}`, true);
  for (const name of Object.keys(MARKS)) {
    if (name !== "partly" || verdicts.has(name)) {
      addVerdict(name, `${MARKS[name]} ${count(verdicts.get(name) || 0)}`, false);
    }
  }
  const groups = tally(records.map((record) => record.by));
  byId("groups").hidden = data.by === null;
  byId("groups").firstChild.textContent = `${data.by} `;
  byId("group").append(option("", "all"));
  for (const name of data.by === null ? [] : [...groups.keys()].sort(compare)) {
    byId("group").append(option(`=${name}`, `${name} (${count(groups.get(name))})`));
  }
  const overlaps = records.some((record) => record.iou !== null);
  for (const name of Object.keys(SORTS)) {
    if (overlaps || !name.startsWith("IoU")) byId("sort").append(option(name, name));
  }
}

function find() {
  const verdict = document.querySelector("[name=verdict]:checked").value;
  const group = byId("group").value;
  const words = byId("search").value.trim().toLowerCase();
  found = records.filter(
    (record) =>
      (!verdict || record.verdict === verdict) &&
      (!group || `=${record.by}` === group) &&
      record.searched.includes(words),
  );
  const sort = SORTS[byId("sort").value];
  if (sort) found.sort(sort);
  page = 0;
  draw();
}

function text(name, className, content) {
  return content.trim()
    ? element(name, `${className} text`, content)
    : element(name, `${className} nothing`, "(no text)");
}

function box(corners, kind) {
  const [left, right] = [corners[0], corners[2]].sort((a, b) => a - b);
  const [top, bottom] = [corners[1], corners[3]].sort((a, b) => a - b);
  const made = element("span", `box ${kind}`);
  const share = (value) => `${100 * value}%`;
  Object.assign(made.style, {
    left: share(left),
    top: share(top),
    width: share(right - left),
    height: share(bottom - top),
  });
  return made;
}

function picture(record) {
  const [width, height] = data.sizes[record.image];
  const made = element("div", "picture");
  made.style.aspectRatio = `${width} / ${height}`;
  made.style.width = `min(100%, ${(26 * width) / height}rem)`;
  const image = element("img");
  image.alt = `Image of ${record.id}`;
  image.src = `data:image/jpeg;base64,${byId(`image-${record.image}`).textContent}`;
  made.append(image);
  for (const corners of record.true) made.append(box(corners, "true"));
  for (const corners of record.written) made.append(box(corners, "written"));
  return made;
}

function term(name, boxes, kind) {
  const made = element("dt", "", name);
  if (boxes.length) made.append(element("span", `key ${kind}`));
  return made;
}

function card(record, place) {
  const made = element("article", record.verdict || "");
  const head = element("p", "head");
  if (record.verdict) head.append(element("span", "verdict", MARKS[record.verdict]));
  if (data.by !== null) head.append(element("span", "group", record.by));
  const name = element("span", "id", record.id);
  name.id = `name-${place}`;
  made.setAttribute("aria-labelledby", name.id);
  head.append(name);
  const list = element("dl");
  const right = record.right.map(([said, times]) => (times > 1 ? `${said} (${times})` : said));
  list.append(
    term("Answer", record.written, "written"),
    text("dd", "answer", record.answer),
    term("Right", record.true, "true"),
    text("dd", "answers", right.join(data.right === null ? "\n" : ", ")),
  );
  // No line ends between a name and its number.
  const numbers = data.metrics.map((name, i) => `${name}\u00a0${shown(record.values[i], 2)}`);
  if (record.iou !== null && !data.metrics.includes("mean_iou")) numbers.push(`IoU\u00a0${record.iou.toFixed(2)}`);
  made.append(picture(record), head);
  if (record.question.trim()) made.append(text("p", "question", record.question));
  made.append(list, element("p", "numbers", numbers.join(" · ")));
  return made;
}

function draw() {
  const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
  const first = page * PER_PAGE;
  const some = found.slice(first, first + PER_PAGE);
  byId("cards").replaceChildren(...some.map(card));
  reach();
  byId("status").textContent = found.length
    ? `${count(first + 1)} to ${count(first + some.length)} of ${count(found.length)}`
    : "No question fits.";
  byId("place").textContent = `${count(page + 1)} / ${count(pages)}`;
  // Not disabled, which would take the focus from a button that is pressed again and again.
  byId("previous").ariaDisabled = page === 0;
  byId("next").ariaDisabled = page === pages - 1;
}

// Lets keys scroll the texts that are too long for their place.
function reach() {
  for (const one of document.querySelectorAll(".text")) {
    if (one.scrollHeight > one.clientHeight) one.tabIndex = 0;
    else one.removeAttribute("tabindex");
  }
}

function turn(by) {
  const pages = Math.ceil(found.length / PER_PAGE);
  if (page + by < 0 || page + by >= pages) return;
  page += by;
  draw();
  byId("tools").scrollIntoView();
}

setUp();
find();
addEventListener("resize", reach);
byId("tools").addEventListener("input", find);
byId("tools").addEventListener("submit", (event) => event.preventDefault());
byId("previous").addEventListener("click", () => turn(-1));
byId("next").addEventListener("click", () => turn(1));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const search = byId("search");
  if (event.key === "Escape" && event.target === search) {
    search.value = "";
    search.blur();
    find();
  }
  if (event.target.closest("input, select, .text")) return;
  if (event.key === "/") {
    event.preventDefault();
    search.focus();
  }
  if (event.key === "ArrowLeft") turn(-1);
  if (event.key === "ArrowRight") turn(1);
});
