/**
 * Calls of Hermes and Qwen 2.5 and 3: JSON between `<tool_call>` and `</tool_call>`.
 * Source: https://github.com/NousResearch/Hermes-Function-Calling
 *
 * @module
 */

import { choice, control, literal, repeat, type Rule, sequence, without } from "../grammar/rule.ts";
import type { AllowedCall, ToolForm } from "./form.ts";
import { jsonCall } from "./json_call.ts";
import type { Reading, Sink, Source } from "./reader.ts";

const OPEN = "<tool_call>", CLOSE = "</tool_call>";

/** A call as a JSON object. */
export function callObject({ name, arguments: rule }: AllowedCall, key: string): Rule {
  return sequence(literal(`{"name": ${JSON.stringify(name)}, "${key}": `), rule, literal("}"));
}

function call(allowed: readonly AllowedCall[]): Rule {
  const objects = choice(...allowed.map((one) => callObject(one, "arguments")));
  return sequence(literal("\n"), objects, literal("\n"), control(CLOSE));
}

/** The form. */
export const hermes: ToolForm = {
  name: "hermes",
  controls: [OPEN, CLOSE],
  detect: (template) => template.includes(OPEN) && !template.includes("<function=") && !template.includes("<arg_key>"),
  *read(source: Source, sink: Sink, { single }): Reading {
    while ((yield* source.until([OPEN], (text) => sink.content(text))) !== undefined) {
      const spaces = yield* source.spaces(), other = yield* jsonCall(source, sink, () => true);
      if (other !== undefined && source.text === "" && source.ended) return; // cut off
      if (other !== undefined) {
        sink.content(OPEN + spaces + other);
        continue;
      }
      yield* source.spaces();
      yield* source.starts(CLOSE);
      if (single) return;
    }
  },
  write: (name, json) => `${OPEN}\n{"name": ${JSON.stringify(name)}, "arguments": ${json}}\n${CLOSE}`,
  calls(allowed, several): Rule {
    const one = sequence(control(OPEN), call(allowed));
    return several ? sequence(one, repeat(sequence(literal("\n"), one))) : one;
  },
  free(allowed, several): Rule {
    const one = sequence(without(OPEN), control(OPEN), call(allowed));
    return several ? sequence(repeat(one), without(OPEN)) : sequence(repeat(one, 0, 1), without(OPEN));
  },
};
