import { assert, assertAlmostEquals, assertEquals } from "@std/assert";
import { test } from "node:test";
import { EMBEDDED_MODEL, LanguageModel } from "../../mod.ts";
import { evaluate } from "../../lib/calibration/mod.ts";
import { chat, closeAfter, error, idle, source, start } from "./fixture.ts";

const { server, client } = await start({ name: "tiny", kv: ["vq2", "bf16"], context: 1024 });
await server.ready;
closeAfter();

const local: Record<string, LanguageModel> = {};
for (const kv of ["vq2", "bf16"]) {
  local[kv] = await LanguageModel.load(EMBEDDED_MODEL, { kv, device: "cpu", context: 1024 });
}
const tokens = local.vq2.tokenizer.encode(source, { addSpecialTokens: false });
const eos = local.vq2.tokenizer.eosIds[0];

interface Choice {
  index: number;
  text: string;
  finish_reason: string;
  prompt_logprobs?: (Record<string, { logprob: number; rank: number | null; decoded_token: string }> | null)[];
  logprobs: {
    tokens: string[];
    token_logprobs: (number | null)[];
    top_logprobs: (Record<string, number> | null)[] | null;
    text_offset: number[];
  };
}

interface Completion {
  choices: Choice[];
  usage: { prompt_tokens: number; completion_tokens: number };
}

async function post(body: unknown): Promise<Completion> {
  const response = await fetch(`${server.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json", authorization: "Bearer dummy" },
    body: JSON.stringify(body),
  });
  assertEquals(response.status, 200, await response.clone().text());
  return await response.json();
}

/** A request as lm-evaluation-harness 0.4's `local-completions` sends it for log-likelihoods, and what it reads of the answer. */
const loglikelihood = (model: string, prompt: number[][]) => ({
  model,
  prompt,
  temperature: 0,
  max_tokens: 1,
  logprobs: 1,
  seed: 1234,
  echo: true,
});

function parsed({ choices }: Completion, contextLengths: number[]): [number, boolean][] {
  return [...choices].sort((a, b) => a.index - b.index).map(({ logprobs: { token_logprobs, top_logprobs } }, i) => {
    const tokens = token_logprobs.slice(contextLengths[i], -1) as number[];
    const tops = top_logprobs!.slice(contextLengths[i], -1) as Record<string, number>[];
    return [
      tokens.reduce((sum, value) => sum + value, 0),
      tokens.every((value, j) => value === Math.max(...Object.values(tops[j]))),
    ];
  });
}

/** The sum of log-probabilities that `evaluate` finds for all tokens but the first. */
async function evaluated(kv: string, ids: number[]): Promise<number> {
  const { model, cache } = local[kv];
  const [quality] = await evaluate(model, cache, [], [Int32Array.from(ids)]);
  return -quality.nll[0] * (ids.length - 1);
}

for (const [name, kv] of [["tiny", "vq2"], ["tiny:bf16", "bf16"]]) {
  test(`${kv}: log-likelihoods that lm-evaluation-harness asks for are evaluate's through the same cache`, async () => {
    const prompts = [tokens.slice(0, 700), tokens.slice(2000, 2012), tokens.slice(3000, 3300)];
    const answer = await post(loglikelihood(name, prompts));
    assertEquals(answer.choices.map(({ index }) => index), [0, 1, 2]);
    assertEquals(answer.usage.prompt_tokens, 1012);
    assertEquals(answer.choices.map(({ logprobs }) => logprobs.token_logprobs.length), [701, 13, 301]);
    const sums = parsed(answer, [1, 1, 1]);
    for (const [i, ids] of prompts.entries()) assertAlmostEquals(sums[i][0], await evaluated(kv, ids), 1e-2);
    // A continuation that the model itself would write is greedy, and no other is.
    const { choices: [{ text }] } = await post({ model: name, prompt: prompts[2], temperature: 0, max_tokens: 6 });
    const written = local.vq2.tokenizer.encode(text, { addSpecialTokens: false }),
      other = [...written.slice(0, -1), 77];
    const both = await post(loglikelihood(name, [[...prompts[2], ...written], [...prompts[2], ...other]]));
    assertEquals(parsed(both, [300, 300]).map(([, greedy]) => greedy), [true, false]);
  });
}

test("bf16: scores are those of the prompt read at once", async () => {
  const ids = tokens.slice(500, 640);
  const { choices: [{ logprobs }] } = await post(loglikelihood("tiny:bf16", [ids]));
  for (const end of [1, 20, 64, 100, 139]) {
    const body = {
      model: "tiny:bf16",
      prompt: ids.slice(0, end),
      max_tokens: 1,
      logprobs: 1,
      logit_bias: { [ids[end]]: 100 },
    };
    const { choices: [next] } = await post({ ...body, temperature: 0 });
    assertAlmostEquals(logprobs.token_logprobs[end]!, next.logprobs.token_logprobs[0]!, 0.02);
  }
});

test("as many entries as tokens: an end, a control token and half a character are among them; max_tokens 0 leaves the prompt's alone", async () => {
  const ids = tokens.slice(0, 9), other = tokens.slice(0, 14);
  for (const id of new Set([eos, 0, 1, 2, 200])) {
    const ended = await post({ ...loglikelihood("tiny", [ids]), logit_bias: { [id]: 100 } });
    assertEquals(ended.choices[0].logprobs.token_logprobs.length, 10, `after token ${id}`);
    assertEquals(ended.choices[0].logprobs.tokens.length, 10);
  }
  const none = await post({ ...loglikelihood("tiny", [ids, other]), max_tokens: 0 });
  assertEquals(none.choices.map(({ logprobs }) => logprobs.token_logprobs.length), [9, 14]);
  assertEquals(none.choices.map(({ finish_reason }) => finish_reason), ["length", "length"]);
  assertEquals(none.usage.completion_tokens, 0);
  const one = await post(loglikelihood("tiny", [ids]));
  assertEquals(one.choices[0].logprobs.token_logprobs.slice(0, -1), none.choices[0].logprobs.token_logprobs);
});

test("echo: texts and tokens come back, with offsets into the text, whole and as a stream, for each choice", async () => {
  const text = source.slice(100, 300), ids = local.vq2.tokenizer.encode(text, { addSpecialTokens: false });
  for (const prompt of [text, ids]) {
    const asked = { model: "tiny", prompt, max_tokens: 5, temperature: 1, seed: 3, n: 2, echo: true };
    const plain = await post(asked), scored = await post({ ...asked, logprobs: 2 });
    for (const [i, { text: whole, logprobs }] of scored.choices.entries()) {
      assert(whole.startsWith(text), whole);
      assertEquals(plain.choices[i].text.slice(0, text.length), text);
      logprobs.tokens.forEach((token, j) => {
        if (!token.includes("\ufffd") && j > 0) {
          assertEquals(whole.slice(logprobs.text_offset[j]).startsWith(token), true, token);
        }
      });
      assertEquals([logprobs.token_logprobs[0], logprobs.top_logprobs![0]], [null, null]);
    }
    const texts = ["", ""], found: (number | null)[][] = [[], []];
    const stream = await client.completions.create({ ...asked, logprobs: 2, stream: true });
    for await (const { choices: [choice] } of stream) {
      texts[choice.index] += choice.text;
      found[choice.index].push(...choice.logprobs?.token_logprobs ?? []);
    }
    assertEquals(texts, scored.choices.map(({ text }) => text));
    assertEquals(found, scored.choices.map(({ logprobs }) => logprobs.token_logprobs));
    const streamed = ["", ""];
    for await (const { choices: [choice] } of await client.completions.create({ ...asked, stream: true })) {
      streamed[choice.index] += choice.text;
    }
    assertEquals(streamed, plain.choices.map(({ text }) => text));
  }
});

test("prompt_logprobs: vLLM's list, by ids", async () => {
  const ids = tokens.slice(0, 40);
  const { choices: [choice] } = await post({ model: "tiny", prompt: ids, max_tokens: 1, prompt_logprobs: 3 });
  const { choices: [{ logprobs }] } = await post({ ...loglikelihood("tiny", [ids]), max_tokens: 0 });
  const list = choice.prompt_logprobs!;
  assertEquals([list.length, list[0], choice.logprobs], [40, null, null]);
  for (const [i, entries] of list.entries()) {
    if (entries === null) continue;
    assertEquals(entries[ids[i]].logprob, logprobs.token_logprobs[i]!);
    assertEquals(Object.values(entries).map(({ rank }) => rank).filter(Boolean).sort(), [1, 2, 3]);
    assert(Object.keys(entries).length <= 4);
  }
  const refused = await error(() =>
    client.completions.create({ model: "tiny", prompt: ids, stream: true, prompt_logprobs: 1 } as never)
  );
  assertEquals([refused.status, refused.param], [400, "prompt_logprobs"]);
});

test("a scored prompt beside others: neither changes the other, a client that leaves gives all back", async () => {
  const ids = tokens.slice(0, 800), alone = await post(loglikelihood("tiny", [ids]));
  const answer = await client.chat.completions.create(chat);
  const [beside, ...answers] = await Promise.all([
    post(loglikelihood("tiny", [ids])),
    ...[1, 2, 3].map(() => client.chat.completions.create(chat)),
  ]);
  assertEquals(beside.choices, alone.choices);
  for (const { choices } of answers) assertEquals(choices, answer.choices);
  const leaving = new AbortController();
  const left = fetch(`${server.url}/v1/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(loglikelihood("tiny", [ids, ids, ids])),
    signal: leaving.signal,
  }).catch(() => undefined);
  await new Promise((resolve) => setTimeout(resolve, 50));
  leaving.abort();
  await left;
  const { pages } = await idle(server);
  assertEquals(pages.free + pages.prefix, pages.total);
});
