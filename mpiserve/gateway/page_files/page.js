// The page of a gateway. Everything that comes from the job is shown as text, never as HTML.
"use strict";

const SHOWN = 10000; // values of an output
let token = ""; // nowhere else: neither in a store of the browser nor in an address
let model = null; // what the form is for

const at = (id) => document.getElementById(id);

function made(tag, text = "", properties = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, properties);
}

// Numbers of JavaScript have 53 bits: larger whole numbers are shown as they were sent.
function exact(key, value, context) {
  if (!Number.isInteger(value) || Number.isSafeInteger(value)) return value;
  return context?.source ?? `about ${value}`;
}

async function ask(path, body) {
  const reply = await fetch(path, {
    method: body === undefined ? "GET" : "POST",
    headers: { Authorization: `Bearer ${token}` },
    body,
    cache: "no-store",
    credentials: "omit",
  });
  const text = await reply.text();
  let table = null;
  try {
    table = JSON.parse(text, exact);
  } catch {
    // Python writes NaN into JSON, which JavaScript does not read.
    table = JSON.parse(text.replace(/(?<=[[,\s])(-?Infinity|NaN)(?=[\],])/g, '"$1"'), exact);
  }
  if (!reply.ok) throw new Error(table.error || `status ${reply.status}`);
  return table;
}

function complain(error) {
  const form = ["try", "found", "enter"].find((id) => !at(id).hidden);
  at(form).append(at("problem"));
  at("problem").textContent = error ? error.message : "";
  at("problem").hidden = !error;
}

// ---- the services

const written = (tensor) => `${tensor.name}: ${tensor.datatype} [${tensor.shape.join(", ")}]`;

function row(entry, described) {
  const line = made("tr");
  line.append(made("td", entry.name), made("td", entry.version || ""));
  const ready = entry.state === "READY";
  const state = ready ? "ready" : entry.reason || "unavailable";
  line.append(made("td", state, { className: ready ? "ready" : "unavailable" }));
  for (const side of ["inputs", "outputs"]) {
    const cell = made("td");
    cell.append(...(described ? described[side] : []).map((tensor) => made("code", written(tensor))));
    line.append(cell);
  }
  const last = made("td");
  if (described) {
    const label = `Try ${entry.name}`;
    const button = made("button", "Try", { type: "button", ariaLabel: label, disabled: !ready });
    button.addEventListener("click", () => choose(described));
    last.append(button);
  }
  line.append(last);
  return line;
}

async function show() {
  complain(null);
  const server = await ask("/v2");
  const entries = await ask("/v2/repository/index", "{}");
  const described = await Promise.all(
    entries.map((entry) => ask(`/v2/models/${encodeURIComponent(entry.name)}`).catch(() => null)),
  );
  at("server").textContent = `The services of a running job, mpiserve ${server.version}.`;
  at("services").replaceChildren(...entries.map((entry, i) => row(entry, described[i])));
  at("enter").hidden = true;
  at("found").hidden = false;
}

// ---- the form

const counted = (shape) => shape.reduce((product, dimension) => product * dimension, 1);

function example(tensor) {
  const shape = tensor.shape.map((dimension) => (dimension < 0 ? 1 : dimension));
  const value = tensor.datatype === "BOOL" ? "false" : "0";
  return { shape, values: Array(Math.min(counted(shape), SHOWN)).fill(value).join(", ") };
}

function fields(tensor, i) {
  const { shape, values } = example(tensor);
  const parts = [];
  const add = (what, tag, hint, value) => {
    const label = made("label", `${tensor.name}: ${what} `, { htmlFor: `${what}${i}` });
    label.append(made("code", hint));
    parts.push(label, made(tag, "", { id: `${what}${i}`, value, spellcheck: false }));
  };
  add("shape", "input", `[${tensor.shape.join(", ")}], -1 for any number`, shape.join(", "));
  add("values", "textarea", `${tensor.datatype}, row by row`, values);
  return parts;
}

function choose(described) {
  model = described;
  complain(null);
  at("trying").textContent = `Try ${model.name}`;
  at("inputs").replaceChildren(...model.inputs.flatMap(fields));
  at("outputs").replaceChildren();
  at("took").textContent = "";
  at("try").hidden = false;
  (at("values0") || at("ask").querySelector("button")).focus();
}

function typed(text, what) {
  const bare = text.replaceAll(/[[\]]/g, " ").trim().replaceAll(/[\s,]+/g, ",").replace(/,$/, "");
  const values = bare ? bare.split(",") : [];
  for (const value of values) {
    try {
      JSON.parse(value);
    } catch {
      throw new Error(`${what}: '${value}' is neither a number nor true or false`);
    }
  }
  return `[${values.join(",")}]`;
}

function body() {
  const inputs = model.inputs.map((tensor, i) => {
    const head = JSON.stringify({ name: tensor.name, datatype: tensor.datatype }).slice(0, -1);
    const shape = typed(at(`shape${i}`).value, `${tensor.name}: shape`);
    return `${head},"shape":${shape},"data":${typed(at(`values${i}`).value, tensor.name)}}`;
  });
  return `{"inputs":[${inputs.join(",")}]}`;
}

function output(tensor) {
  const values = tensor.data.slice(0, SHOWN).join(", ");
  const rest = tensor.data.length - SHOWN;
  const text = rest > 0 ? `${values}, and ${rest} more` : values;
  return [made("h3", written(tensor)), made("pre", text, { tabIndex: 0 })];
}

async function send() {
  complain(null);
  at("took").textContent = "";
  at("outputs").replaceChildren();
  const begin = performance.now();
  const answer = await ask(`/v2/models/${encodeURIComponent(model.name)}/infer`, body());
  at("took").textContent = `${(performance.now() - begin).toFixed(1)} ms`;
  at("outputs").replaceChildren(...answer.outputs.flatMap(output));
}

// One thing at a time; what goes wrong is said at the same place.
function doing(button, work) {
  return async (event) => {
    event.preventDefault();
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      complain(error);
    } finally {
      button.disabled = false;
    }
  };
}

const enter = at("enter").querySelector("button");
at("enter").addEventListener(
  "submit",
  doing(enter, async () => {
    token = at("token").value.trim();
    at("token").value = "";
    at("token").focus(); // there the next one goes if this is wrong
    await show();
    at("again").focus();
  }),
);
at("again").addEventListener("click", doing(at("again"), show));
at("ask").addEventListener("submit", doing(at("ask").querySelector("button"), send));
