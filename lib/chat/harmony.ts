/**
 * The channels of gpt-oss: analysis is reasoning, final is text, and a part with a recipient is a call.
 * Source: https://github.com/openai/harmony/blob/main/docs/format.md
 *
 * @module
 */

import { choice, control, literal, repeat, type Rule, sequence, without } from "../grammar/rule.ts";
import type { AllowedCall, ToolForm } from "./form.ts";
import type { Reading, Sink, Source } from "./reader.ts";

const START = "<|start|>",
  CHANNEL = "<|channel|>",
  MESSAGE = "<|message|>",
  CONSTRAIN = "<|constrain|>",
  END = "<|end|>",
  CALL = "<|call|>",
  RETURN = "<|return|>";

/** A part before the last one: reasoning. */
const analysis = sequence(
  control(CHANNEL),
  literal("analysis"),
  control(MESSAGE),
  without(),
  control(END),
  control(START),
  literal("assistant"),
);

function call(allowed: readonly AllowedCall[]): Rule {
  const one = allowed.map(({ name, arguments: rule }) =>
    sequence(literal(`commentary to=functions.${name} `), control(CONSTRAIN), literal("json"), control(MESSAGE), rule)
  );
  return sequence(control(CHANNEL), choice(...one));
}

function final(text: Rule): Rule {
  return sequence(control(CHANNEL), literal("final"), control(MESSAGE), text);
}

/** The form. A model of it stops after each call. */
export const harmony: ToolForm = {
  name: "harmony",
  controls: [START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN],
  detect: (template) => template.includes(CHANNEL) && template.includes(MESSAGE),
  *read(source: Source, sink: Sink, { single }): Reading {
    for (let thoughts = 0;;) {
      let header = "";
      const marker = yield* source.until([MESSAGE], (text) => void (header += text));
      if (marker === undefined) {
        // Without a header it is plain text; a header that is cut off is nothing.
        if (!header.includes("<|")) sink.content(header);
        return;
      }
      const channel = /<\|channel\|>\s*(\w+)/.exec(header)?.[1], recipient = /\bto=([\w.-]+)/.exec(header)?.[1];
      const isThought = channel === "analysis" && recipient === undefined;
      if (recipient !== undefined) sink.begin(recipient.replace(/^functions\./, ""));
      else if (isThought && thoughts++ > 0) sink.reasoning("\n");
      const take = (text: string): void => {
        if (recipient !== undefined) sink.arguments(text);
        else if (isThought) sink.reasoning(text);
        else sink.content(text);
      };
      const end = yield* source.until([END, START, CHANNEL, CALL, RETURN], take);
      if (end === undefined || (single && recipient !== undefined)) return;
      if (end === CHANNEL) source.putBack(CHANNEL);
    }
  },
  write: (name, json) => `${CHANNEL}commentary to=functions.${name} ${CONSTRAIN}json${MESSAGE}${json}`,
  calls: (allowed) => sequence(repeat(analysis, 0, 1), call(allowed)),
  free: (allowed) => sequence(repeat(analysis), choice(call(allowed), final(without()))),
  text: (text) => sequence(repeat(analysis, 0, 1), final(text)),
};
