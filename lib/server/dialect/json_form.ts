/**
 * The form that an answer is to have, in the words of OpenAI, of llama.cpp and of vLLM.
 *
 * @module
 */

import type { GenerationRequest } from "../../engine/request.ts";
import { invalid } from "../error.ts";
import type { ChatRequest, CompletionRequest } from "../schema.ts";

type Form = NonNullable<GenerationRequest["json"]>;

/** Forms that other servers have, each with what it would take. */
const ABSENT: Readonly<Record<string, string>> = {
  grammar: "a grammar",
  guided_regex: "a regular expression",
  guided_choice: "a list of texts",
  guided_grammar: "a grammar",
  guided_whitespace_pattern: "a pattern of spaces",
};

const ABSENT_STRUCTURED: readonly string[] = [
  "regex",
  "choice",
  "grammar",
  "structural_tag",
  "whitespace_pattern",
];

/** The form that a body asks for, or undefined. Throws ApiError for one that there is not, and for two. */
export function jsonForm(body: ChatRequest | CompletionRequest): Form | undefined {
  for (const [name, what] of Object.entries(ABSENT)) if (isSet(body[name])) throw absent(name, what);
  const forms = [
    ["response_format", ofFormat(body.response_format)],
    ["json_schema", body.json_schema ?? undefined],
    ["guided_json", schemaOf(body.guided_json, "guided_json")],
    ["structured_outputs", ofStructured(body.structured_outputs)],
  ].filter((entry): entry is [string, Form] => entry[1] !== undefined);
  if (forms.length < 2) return forms[0]?.[1];
  throw invalid(
    `${forms.map(([name]) => name).join(" and ")} both ask for a form of the answer; give one`,
    forms[1][0],
  );
}

function isSet(value: unknown): boolean {
  return value !== undefined && value !== null && value !== "" && !(Array.isArray(value) && value.length === 0);
}

function absent(name: string, what: string): Error {
  return invalid(
    `${name}: ${what} is not supported by this server; ask for JSON by response_format with a JSON schema`,
    name,
    "unsupported_parameter",
  );
}

function ofFormat(format: ChatRequest["response_format"]): Form | undefined {
  if (!format || format.type === "text") return undefined;
  if (format.type === "json_object") return format.schema ?? true;
  const schema = format.json_schema?.schema ?? format.schema;
  if (schema) return schema;
  throw invalid("response_format.json_schema.schema: expected a JSON schema", "response_format.json_schema.schema");
}

function ofStructured(outputs: ChatRequest["structured_outputs"]): Form | undefined {
  if (!outputs) return undefined;
  for (const name of ABSENT_STRUCTURED) {
    if (isSet(outputs[name])) throw absent(`structured_outputs.${name}`, "this form");
  }
  return schemaOf(outputs.json, "structured_outputs.json") ?? (outputs.json_object ? true : undefined);
}

/** A schema, which may come as JSON in a text. */
function schemaOf(schema: Record<string, unknown> | string | null | undefined, name: string): Form | undefined {
  if (typeof schema !== "string") return schema ?? undefined;
  if (schema === "") return undefined;
  let value: unknown;
  try {
    value = JSON.parse(schema);
  } catch (error) {
    throw invalid(`${name}: is not JSON: ${(error as Error).message.slice(0, 200)}`, name);
  }
  if (typeof value === "object" && value !== null && !Array.isArray(value)) return value as Record<string, unknown>;
  throw invalid(`${name}: expected a JSON schema that is an object`, name);
}
