/**
 * Jinja2's tokens. Blocks are trimmed as transformers sets it: `trim_blocks` and `lstrip_blocks`.
 * Source: https://jinja.palletsprojects.com/en/stable/templates/#whitespace-control
 *
 * @module
 */

/** A template does not parse, or fails as it is rendered. */
export class JinjaError extends Error {
  /** Always "JinjaError". */
  override readonly name: string = "JinjaError";
}

/** What a {@link JinjaToken} can be; "{{" and "{%" open a tag, "}}" and "%}" close one. */
export type JinjaTokenKind = "text" | "{{" | "}}" | "{%" | "%}" | "name" | "string" | "number" | "operator";

/** A piece of a template. */
export interface JinjaToken {
  /** What it is. */
  readonly kind: JinjaTokenKind;
  /** Its text; of a string its value. */
  readonly value: string;
  /** The line it begins on, from 1. */
  readonly line: number;
}

const OPERATORS = ["//", "**", "==", "!=", ">=", "<=", ..."+-/*%~[](){}><=.:|,;"];
const OPEN = /\{([{%#])([-+]?)/g;
const NUMBER = /0[xX][\da-fA-F_]+|0[bB][01_]+|0[oO][0-7_]+|\d[\d_]*(?:\.\d[\d_]*)?(?:[eE][+-]?\d+)?/y;
const NAME = /[\p{L}\p{Nl}_][\p{L}\p{Nl}\p{M}\p{Nd}\p{Pc}_]*/uy;
const STRING = /'([^'\\]*(?:\\[^][^'\\]*)*)'|"([^"\\]*(?:\\[^][^"\\]*)*)"/y;
const RAW = /\{%[-+]?\s*raw\s*(-%\}\s*|\+?%\})/y;
const ENDRAW = /\{%([-+]?)\s*endraw\s*(?:-%\}\s*|\+%\}|%\}\n?)/g;
const ENDS: Readonly<Record<string, RegExp>> = {
  "{": /-\}\}\s*|\}\}/y,
  "%": /\+%\}|-%\}\s*|%\}\n?/y,
  "#": /\+#\}|-#\}\s*|#\}\n?/g,
};

/** Cuts a template into tokens. Throws {@link JinjaError} where a tag has no end or a character has no meaning. */
export function jinjaTokens(template: string): JinjaToken[] {
  return new Lexer(template.replace(/\r\n?/g, "\n").replace(/\n$/, "")).run();
}

class Lexer {
  readonly #source: string;
  readonly #tokens: JinjaToken[] = [];
  #at = 0;
  #line = 1;
  #counted = 0;
  /** Whether what was read last ended a line. */
  #lineStarts = true;

  constructor(source: string) {
    this.#source = source;
  }

  run(): JinjaToken[] {
    while (this.#at < this.#source.length) {
      OPEN.lastIndex = this.#at;
      const open = OPEN.exec(this.#source);
      if (!open) {
        this.#text(this.#source.slice(this.#at));
        break;
      }
      const [, kind, sign] = open;
      this.#text(this.#before(this.#source.slice(this.#at, open.index), kind, sign));
      this.#at = open.index;
      if (kind === "%" && this.#raw()) continue;
      this.#at = open.index + open[0].length;
      if (kind === "#") this.#end(this.#match(ENDS["#"], "a comment has no end"));
      else this.#tag(kind);
    }
    return this.#tokens;
  }

  /** The text before a tag, with the white space that the tag takes away. */
  #before(text: string, kind: string, sign: string): string {
    if (sign === "-") return text.trimEnd();
    if (sign === "+" || kind === "{") return text;
    const lineStart = text.lastIndexOf("\n") + 1;
    return (lineStart > 0 || this.#lineStarts) && text.slice(lineStart).trim() === "" ? text.slice(0, lineStart) : text;
  }

  #raw(): boolean {
    RAW.lastIndex = this.#at;
    const begin = RAW.exec(this.#source);
    if (!begin) return false;
    this.#at += begin[0].length;
    this.#lineStarts = begin[0].endsWith("\n");
    ENDRAW.lastIndex = this.#at;
    const end = ENDRAW.exec(this.#source);
    if (!end) throw this.#error("raw has no endraw");
    this.#text(this.#before(this.#source.slice(this.#at, end.index), "%", end[1]));
    this.#at = end.index + end[0].length;
    this.#lineStarts = end[0].endsWith("\n");
    return true;
  }

  #tag(kind: string): void {
    this.#push(kind === "{" ? "{{" : "{%", "");
    for (let depth = 0;;) {
      const space = /\s*/y;
      space.lastIndex = this.#at;
      this.#at += space.exec(this.#source)![0].length;
      if (this.#at >= this.#source.length) throw this.#error("a tag has no end");
      if (depth === 0) {
        ENDS[kind].lastIndex = this.#at;
        const end = ENDS[kind].exec(this.#source);
        if (end) {
          this.#push(kind === "{" ? "}}" : "%}", "");
          return this.#end(end);
        }
      }
      const operator = this.#expression();
      if (operator !== undefined && "([{".includes(operator)) depth++;
      if (operator !== undefined && ")]}".includes(operator)) depth--;
    }
  }

  /** Reads one token of an expression; the operator where it is one. */
  #expression(): string | undefined {
    for (const [kind, pattern] of [["name", NAME], ["number", NUMBER], ["string", STRING]] as const) {
      pattern.lastIndex = this.#at;
      const found = pattern.exec(this.#source);
      if (!found) continue;
      this.#push(kind, kind === "string" ? unescaped(found[1] ?? found[2]) : found[0]);
      this.#at += found[0].length;
      return undefined;
    }
    const operator = OPERATORS.find((operator) => this.#source.startsWith(operator, this.#at));
    if (operator === undefined) throw this.#error(`unexpected character ${JSON.stringify(this.#source[this.#at])}`);
    this.#push("operator", operator);
    this.#at += operator.length;
    return operator;
  }

  #match(pattern: RegExp, missing: string): RegExpExecArray {
    pattern.lastIndex = this.#at;
    const found = pattern.exec(this.#source);
    if (!found) throw this.#error(missing);
    return found;
  }

  #end(found: RegExpExecArray): void {
    this.#at = found.index + found[0].length;
    this.#lineStarts = found[0].endsWith("\n");
  }

  #text(value: string): void {
    if (value !== "") this.#push("text", value);
  }

  #push(kind: JinjaTokenKind, value: string): void {
    for (; this.#counted < this.#at; this.#counted++) if (this.#source[this.#counted] === "\n") this.#line++;
    this.#tokens.push({ kind, value, line: this.#line });
  }

  #error(message: string): JinjaError {
    this.#push("text", "");
    return new JinjaError(`line ${this.#line}: ${message}`);
  }
}

const ESCAPES: Readonly<Record<string, string>> = {
  n: "\n",
  t: "\t",
  r: "\r",
  b: "\b",
  f: "\f",
  v: "\v",
  a: "\x07",
  "\n": "",
  "\\": "\\",
  "'": "'",
  '"': '"',
};

/** A string literal's value, by Python's rules: an escape that it does not know stays as it is. */
function unescaped(text: string): string {
  return text.replace(
    /\\(?:x([\da-fA-F]{2})|u([\da-fA-F]{4})|U([\da-fA-F]{8})|([0-7]{1,3})|([^]))/g,
    (all, x, u, long, octal, character) => {
      const hex = x ?? u ?? long;
      if (hex !== undefined) return String.fromCodePoint(parseInt(hex, 16));
      if (octal !== undefined) return String.fromCodePoint(parseInt(octal, 8));
      return ESCAPES[character] ?? all;
    },
  );
}
