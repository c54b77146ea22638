/**
 * Calls of Mistral: `[TOOL_CALLS]` and a list of JSON objects; newer ones write `[TOOL_CALLS]name[ARGS]{...}` for each.
 * Source: https://github.com/mistralai/mistral-common
 *
 * @module
 */

import { choice, control, empty, literal, repeat, type Rule, sequence, without } from "../grammar/rule.ts";
import type { AllowedCall, ToolForm } from "./form.ts";
import { callObject } from "./hermes.ts";
import { jsonCall, jsonValue } from "./json_call.ts";
import type { ReadContext, Reading, Sink, Source } from "./reader.ts";

const CALLS = "[TOOL_CALLS]", ID = "[CALL_ID]", ARGUMENTS = "[ARGS]";

/** Both ways: models of one generation write the other's too. */
function* read(source: Source, sink: Sink, { single }: ReadContext): Reading {
  while ((yield* source.until([CALLS], (text) => sink.content(text))) !== undefined) {
    yield* source.spaces();
    if ((yield* source.peek()) !== "[" || (yield* source.starts(ID, ARGUMENTS)) !== undefined) {
      yield* named(source, sink);
      if (single && sink.calls > 0) return;
      continue;
    }
    yield* source.starts("[");
    do {
      yield* source.spaces();
      const other = yield* jsonCall(source, sink, () => true);
      if (other !== undefined && source.text === "" && source.ended) return; // cut off
      if (other !== undefined) {
        sink.content(CALLS + "[" + other);
        break;
      }
      if (single) return;
      yield* source.spaces();
    } while ((yield* source.starts(",")) !== undefined);
    yield* source.starts("]");
  }
}

function* named(source: Source, sink: Sink): Reading {
  let name = "";
  const marker = yield* source.until([ARGUMENTS, ID, "{"], (text) => void (name += text));
  if (marker === undefined) return sink.content(CALLS + name);
  if (marker === ID) yield* source.until([ARGUMENTS, "{"], () => {});
  if (marker === "{") source.text = "{" + source.text;
  sink.begin(name.trim());
  yield* source.spaces();
  yield* jsonValue(source, (text) => sink.arguments(text));
}

/** The older form. */
export const mistral: ToolForm = {
  name: "mistral",
  controls: [CALLS, ID, ARGUMENTS],
  detect: (template) => template.includes(CALLS),
  read,
  write: (name, json) => `${CALLS}[{"name": ${JSON.stringify(name)}, "arguments": ${json}}]`,
  calls(allowed, several): Rule {
    const one = choice(...allowed.map((call) => callObject(call, "arguments")));
    const list = several ? sequence(one, repeat(sequence(literal(", "), one))) : one;
    return sequence(control(CALLS), literal("["), list, literal("]"));
  },
  free(allowed, several): Rule {
    return sequence(without(CALLS), choice(empty, this.calls(allowed, several)));
  },
};

/** The newer form. */
export const mistralArguments: ToolForm = {
  ...mistral,
  name: "mistral-args",
  detect: (template) => template.includes(CALLS) && template.includes(ARGUMENTS),
  write: (name, json) => `${CALLS}${name}${ARGUMENTS}${json}`,
  calls(allowed: readonly AllowedCall[], several: boolean): Rule {
    const names = allowed.map(({ name, arguments: rule }) => sequence(literal(name), control(ARGUMENTS), rule));
    const one = sequence(control(CALLS), choice(...names));
    return several ? repeat(one, 1) : one;
  },
};
