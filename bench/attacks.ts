/**
 * What strangers may send to hurt others: a table of attacks, each a request or what a connection does. Texts are made once,
 * so that the attacker's own work does not count.
 *
 * @module
 */

import { connect } from "node:net";

/** A server that is attacked. */
export interface Target {
  /** Where it listens. */
  url: string;
  /** Name of the model. */
  model: string;
  /** Aborted when the attack is over. */
  signal: AbortSignal;
}

/** One round of an attack, done again and again by a few clients at once until its time is over. */
export type Round = (target: Target) => Promise<void>;

/** An attack on a model of this name: what it sends is made here, before anything is measured. */
export type Attack = (model: string) => Round;

/** Posts a text that is made once, and reads what comes. */
function posting(path: string, make: (model: string) => unknown): Attack {
  return (model) => {
    const body = JSON.stringify(make(model)), headers = { "content-type": "application/json" };
    return async ({ url, signal }) => {
      const response = await fetch(url + path, { method: "POST", headers, body, signal });
      await response.text();
    };
  };
}

const completion = (fields: Record<string, unknown>): Attack =>
  posting("/v1/completions", (model) => ({ model, max_tokens: 30, ...fields }));

const chat = (fields: Record<string, unknown>): Attack =>
  posting("/v1/chat/completions", (model) => ({
    model,
    messages: [{ role: "user", content: "a" }],
    max_tokens: 30,
    ...fields,
  }));

const form = (schema: unknown, fields: Record<string, unknown> = {}): Attack =>
  chat({ response_format: { type: "json_schema", json_schema: { name: "a", schema } }, ...fields });

const nested = (depth: number): unknown =>
  depth === 0 ? {} : { type: Array(8).fill("object"), properties: { a: nested(depth - 1) } };

/** Alternatives that begin alike, so that one cannot be told from the other before the end. */
const alike = (levels: number): unknown =>
  levels === 0 ? { type: "integer" } : {
    anyOf: ["+", "-"].map((op) => ({
      type: "object",
      properties: { left: alike(levels - 1), op: { const: op }, right: { type: "integer" } },
      required: ["left", "op", "right"],
      additionalProperties: false,
    })),
  };

const optional = (count: number): unknown => ({
  type: "object",
  properties: Object.fromEntries(Array.from({ length: count }, (_, i) => [`p${i}`, { type: "integer" }])),
});

/** A client that asks for much and reads nothing. */
const unread: Round = ({ url, model, signal }) => {
  const body = JSON.stringify({
    model,
    messages: [{ role: "user", content: "a" }],
    n: 16,
    logprobs: true,
    top_logprobs: 20,
    max_tokens: 1500,
    temperature: 2,
    stream: true,
  });
  const { promise, resolve } = Promise.withResolvers<void>(), { hostname, port } = new URL(url);
  const socket = connect(Number(port), hostname, () => {
    socket.pause();
    socket.write(
      `POST /v1/chat/completions HTTP/1.1\r\nhost: ${hostname}\r\ncontent-type: application/json\r\n` +
        `content-length: ${body.length}\r\n\r\n${body}`,
    );
  });
  socket.on("error", () => {});
  socket.on("close", () => resolve());
  signal.addEventListener("abort", () => socket.destroy());
  return promise;
};

/** Many connections that send the beginning of a request, and no more. */
const idle: Round = ({ url, signal }) => {
  const { hostname, port } = new URL(url), { promise, resolve } = Promise.withResolvers<void>();
  const sockets = Array.from({ length: 300 }, () => {
    const socket = connect(
      Number(port),
      hostname,
      () => socket.write("POST /v1/completions HTTP/1.1\r\nhost: localhost\r\n"),
    );
    socket.on("error", () => {});
    return socket;
  });
  signal.addEventListener("abort", () => {
    for (const socket of sockets) socket.destroy();
    resolve();
  });
  return promise;
};

/** Clients that leave at once. */
const leaving: Round = async ({ url, model }) => {
  const abort = new AbortController(), body = JSON.stringify({ model, prompt: "word ".repeat(300), max_tokens: 200 });
  setTimeout(() => abort.abort(), 20);
  const headers = { "content-type": "application/json" };
  await fetch(`${url}/v1/completions`, { method: "POST", headers, body, signal: abort.signal }).then(
    (response) => response.text(),
    () => {},
  );
};

/** All attacks. */
export const ATTACKS: Readonly<Record<string, Attack>> = {
  "settings that are 0 as float32": completion({ prompt: [3122], temperature: 2, repetition_penalty: 1e-46 }),
  "settings at the edge of float32": completion({
    prompt: [3122],
    temperature: 1e-44,
    repetition_penalty: 1.1e-6,
    n: 4,
  }),
  "a schema of 8^8 rules": form(nested(8)),
  "a schema of 8^12 rules": form(nested(12)),
  "alternatives that begin alike": form(alike(9)),
  "9000 optional properties, n 16": form(optional(9000), { n: 16 }),
  "660 KB of =": completion({ prompt: "=".repeat(660_000) }),
  "660 KB of words": completion({ prompt: "word ".repeat(132_000) }),
  "8 KB of =": completion({ prompt: "=".repeat(8000) }),
  "64 prompts": completion({ prompt: Array.from({ length: 64 }, (_, i) => `word ${i}`) }),
  "16 prompts with 2 choices": completion({ prompt: Array.from({ length: 16 }, (_, i) => `word ${i}`), n: 2 }),
  "long prompts": completion({ prompt: "A few words of a text. ".repeat(300), max_tokens: 2 }),
  "200,000 wrong ids": completion({ prompt: Array(200_000).fill(-1) }),
  "64 x 3000 wrong ids": completion({ prompt: Array(64).fill(Array(3000).fill(-1)) }),
  "100,000 logit biases": completion({
    prompt: "a",
    logit_bias: Object.fromEntries(Array.from({ length: 100_000 }, (_, i) => [i, 1])),
  }),
  "9000 messages": chat({ messages: Array(9000).fill({ role: "none", content: [{}] }) }),
  "a long stop string": completion({ prompt: "a", stop: ["a".repeat(900_000)] }),
  "1 MB of brackets": chat({ metadata: "[".repeat(1_000_000) }),
  "a client that does not read": () => unread,
  "300 idle connections": () => idle,
  "clients that leave": () => leaving,
};
