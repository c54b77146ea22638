/**
 * What people say in a chat stays text: a control token is made by the template alone, whatever name stands in a message.
 *
 * A template joins its own text and that of the messages to one, in which names of control tokens become these tokens. So
 * before it is rendered, each such name in the messages gets a mark after its first character, which keeps it from being
 * found, and which is taken out where the text between control tokens is encoded.
 *
 * @module
 */

import type { Tokenizer as HuggingFaceTokenizer } from "@huggingface/tokenizers";

/** Marks on names of control tokens. */
export class ContentMarks {
  readonly #names: readonly string[];
  readonly #longest: number;
  readonly #found: RegExp | undefined;

  /** `names`: those of the control tokens. */
  constructor(names: readonly string[]) {
    this.#names = names.filter((name) => [...name].length > 1);
    this.#longest = this.#names.reduce((most, { length }) => Math.max(most, length), 0);
    const any = this.#names.map((name) => name.replace(/[\\^$.*+?()[\]{}|/-]/g, "\\$&")).join("|");
    if (any) this.#found = new RegExp(`(?=${any}).`, "gsu");
  }

  /** A mark that occurs in none of these values, one of Unicode's noncharacters. */
  markFor(values: unknown): string {
    const text = JSON.stringify(values) ?? "";
    for (let code = 0xfdd0; code <= 0xfdef; code++) {
      const mark = String.fromCharCode(code);
      if (!text.includes(mark)) return mark;
    }
    throw new RangeError("the messages have all 32 noncharacters from U+FDD0 on; leave one out");
  }

  /** A value with a mark in each name in its strings, and in an end of a string that what follows could make a name. */
  marked<T>(value: T, mark: string): T {
    if (!this.#found) return value;
    if (typeof value === "string") return this.#text(value, mark) as T;
    if (Array.isArray(value)) return value.map((item) => this.marked(item, mark)) as T;
    if (typeof value !== "object" || value === null) return value;
    return Object.fromEntries(
      Object.entries(value).map(([key, item]) => [this.#text(key, mark), this.marked(item, mark)]),
    ) as T;
  }

  #text(text: string, mark: string): string {
    const whole = text.replace(this.#found!, (first) => first + mark);
    for (let at = Math.max(0, whole.length - this.#longest + 1); at < whole.length; at++) {
      const end = whole.slice(at);
      if (!this.#names.some((name) => name.startsWith(end))) continue;
      const [first] = end;
      return whole.slice(0, at) + first + mark + this.#text(end.slice(first.length), mark);
    }
    return whole;
  }
}

/** Makes an encoder pass over marks. Returns what sets the mark, "" for none. */
export function passOverMarks(encoder: HuggingFaceTokenizer): (mark: string) => void {
  type PreTokenizer = (text: string, options?: unknown) => string[];
  const parts = encoder as unknown as { pre_tokenizer: PreTokenizer | null };
  const inner = parts.pre_tokenizer;
  let mark = "";
  return (given) => {
    mark = given;
    // Behind the places where control tokens are sought.
    parts.pre_tokenizer = mark === "" ? inner : (text, options) => {
      const plain = text.replaceAll(mark, "");
      return inner ? inner(plain, options) : [plain];
    };
  };
}
