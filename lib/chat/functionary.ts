/**
 * Calls of Functionary: v3.1 writes `<function=name>{...}</function>`, v3.2 parts that begin with `>>>` and who they are for.
 * Source: https://github.com/MeetKai/functionary
 *
 * @module
 */

import { choice, control, literal, repeat, type Rule, sequence, without } from "../grammar/rule.ts";
import type { AllowedCall, ToolForm } from "./form.ts";
import { jsonValue } from "./json_call.ts";
import { codeCall } from "./llama.ts";
import type { Reading, Sink, Source } from "./reader.ts";

const OPEN = "<function=", CLOSE = "</function>", TAG = "<|python_tag|>", PART = ">>>", ALL = "all";

function tagged(allowed: readonly AllowedCall[]): Rule {
  const calls = allowed.map(({ name, arguments: rule }) => sequence(literal(`${name}>`), rule, literal(CLOSE)));
  return choice(...calls);
}

/** v3.1, which is made from Llama 3.1. */
export const functionary31: ToolForm = {
  name: "functionary-3.1",
  controls: [TAG],
  detect: (template) => template.includes(OPEN) && template.includes(CLOSE) && template.includes(TAG),
  *read(source: Source, sink: Sink, context): Reading {
    for (;;) {
      const marker = yield* source.until([OPEN, TAG], (text) => sink.content(text));
      if (marker === undefined) return;
      let text = "";
      if (marker === TAG) {
        yield* source.until([], (part) => void (text += part));
        codeCall(text, sink, context);
        return;
      }
      if ((yield* source.until([">", "\n"], (part) => void (text += part))) !== ">" || text === "") {
        sink.content(OPEN + text);
        continue;
      }
      sink.begin(text);
      yield* source.spaces();
      yield* jsonValue(source, (part) => sink.arguments(part));
      yield* source.spaces();
      yield* source.starts(CLOSE);
      if (context.single) return;
    }
  },
  write: (name, json) => `${OPEN}${name}>${json}${CLOSE}`,
  calls(allowed, several): Rule {
    const one = sequence(literal(OPEN), tagged(allowed));
    return several ? repeat(one, 1) : one;
  },
  free(allowed, several): Rule {
    const one = sequence(without(OPEN), control(OPEN), tagged(allowed));
    return several ? sequence(repeat(one), without(OPEN)) : sequence(repeat(one, 0, 1), without(OPEN));
  },
};

/** Text up to the next part, which is returned, or to the end. Text may hold `>>>` too: a part has a name after it. */
function* partAfter(
  source: Source,
  parts: readonly string[],
  take: (text: string) => void,
): Reading<string | undefined> {
  while ((yield* source.until([PART], take)) !== undefined) {
    const part = yield* source.starts(...parts);
    if (part !== undefined) return part;
    take(PART);
  }
  return undefined;
}

/** v3.2; the prompt ends with the `>>>` of the first part. */
export const functionary32: ToolForm = {
  name: "functionary-3.2",
  controls: [],
  detect: (template) => template.includes(`'${PART}'`) || template.includes(`${PART}${ALL}\\n`),
  *read(source: Source, sink: Sink, { tools, single }): Reading {
    const parts = [ALL, ...tools.map(({ name }) => name)].map((name) => `${name}\n`);
    let part = (yield* source.starts(...parts)) ?? `${ALL}\n`;
    for (let next: string | undefined;; part = next) {
      if (part === `${ALL}\n`) next = yield* partAfter(source, parts, (text) => sink.content(text));
      else {
        sink.begin(part.trimEnd());
        yield* source.spaces();
        let code = "";
        const isJson = (yield* source.peek()) === "{";
        if (isJson) yield* jsonValue(source, (text) => sink.arguments(text));
        if (isJson && single) return;
        next = yield* partAfter(source, parts, (text) => void (code += text));
        if (!isJson) sink.arguments(JSON.stringify({ code: code.trim() }));
        if (single) return;
      }
      if (next === undefined) return;
    }
  },
  write: (name, json) => `${PART}${name}\n${json}`,
  calls(allowed, several): Rule {
    const one = choice(...allowed.map(({ name, arguments: rule }) => sequence(literal(`${name}\n`), rule)));
    return several ? sequence(one, repeat(sequence(literal(PART), one))) : one;
  },
  free(allowed, several): Rule {
    const calls = this.calls(allowed, several), rest = sequence(literal(PART), calls);
    return choice(sequence(literal(`${ALL}\n`), without(PART), repeat(rest, 0, 1)), calls);
  },
  text: (text) => sequence(literal(`${ALL}\n`), text),
};
