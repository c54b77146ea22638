/**
 * Jinja2 templates as transformers renders them: Python's values and scopes, loop controls, `generation` blocks,
 * `raise_exception` and `strftime_now`. Nothing is escaped for HTML. Templates cannot load others.
 * Source: https://huggingface.co/docs/transformers/chat_templating_writing
 *
 * @module
 */

import { attribute, item } from "./access.ts";
import { filterOf, Given } from "./filters.ts";
import { GLOBALS } from "./globals.ts";
import { JinjaError } from "./lexer.ts";
import type { Arguments, Expression, Parameter, Statement } from "./nodes.ts";
import { arithmetic } from "./operators.ts";
import { parseJinja } from "./parser.ts";
import { testOf } from "./tests.ts";
import {
  type Attributes,
  type Callable,
  contains,
  equal,
  float,
  fromJavaScript,
  isFloat,
  iterate,
  keyOf,
  Namespace,
  numeric,
  order,
  slice,
  text,
  truth,
  Tuple,
  typeName,
  Undefined,
  undefinedError,
  type Value,
} from "./values.ts";

/** A parsed template. */
export class JinjaTemplate {
  readonly #body: readonly Statement[];

  /** Parses the source. Throws {@link JinjaError} with the line and the cause. */
  constructor(source: string) {
    this.#body = parseJinja(source);
  }

  /** The template's text with these variables. Throws {@link JinjaError}, with the message of `raise_exception` too. */
  render(variables: Readonly<Record<string, unknown>>): string {
    const top = new Scope(undefined), out: string[] = [];
    for (const [name, value] of Object.entries(GLOBALS)) top.set(name, value);
    for (const [name, value] of Object.entries(variables)) {
      if (value !== undefined) top.set(name, fromJavaScript(value));
    }
    run(this.#body, new Scope(top), out);
    return out.join("");
  }
}

/** Names and what they stand for; what is not here is sought outside. */
class Scope {
  readonly #values = new Map<string, Value>();
  readonly #outer: Scope | undefined;

  constructor(outer: Scope | undefined) {
    this.#outer = outer;
  }

  get(name: string): Value {
    const value = this.#values.get(name);
    if (value !== undefined) return value;
    return this.#outer ? this.#outer.get(name) : new Undefined(`'${name}'`);
  }

  set(name: string, value: Value): void {
    this.#values.set(name, value);
  }
}

type Signal = "break" | "continue" | undefined;

function run(body: readonly Statement[], scope: Scope, out: string[]): Signal {
  for (const statement of body) {
    const signal = execute(statement, scope, out);
    if (signal) return signal;
  }
  return undefined;
}

/** The text of statements in a scope of their own. */
function rendered(body: readonly Statement[], scope: Scope): string {
  const out: string[] = [];
  run(body, scope, out);
  return out.join("");
}

function execute(statement: Statement, scope: Scope, out: string[]): Signal {
  switch (statement.type) {
    case "text":
      out.push(statement.text);
      return;
    case "output":
      out.push(text(evaluate(statement.value, scope)));
      return;
    case "do":
      evaluate(statement.value, scope);
      return;
    case "branch":
      return run(truth(evaluate(statement.test, scope)) ? statement.then : statement.otherwise, scope, out);
    case "for":
      out.push(loop(statement, evaluate(statement.over, scope), scope, 0));
      return;
    case "set":
      assign(statement.target, evaluate(statement.value, scope), scope);
      return;
    case "capture": {
      const captured = rendered(statement.body, new Scope(scope));
      assign(statement.target, statement.filter ? evaluate(statement.filter, scope, captured) : captured, scope);
      return;
    }
    case "macro":
      scope.set(statement.name, macro(`macro '${statement.name}'`, statement.parameters, statement.body, scope));
      return;
    case "callblock": {
      const call = statement.call as Expression & { type: "call" };
      const { positional, named } = given(call.given, scope);
      named.set("caller", macro("the call block", statement.parameters, statement.body, scope));
      out.push(text(called(evaluate(call.callee, scope), positional, named)));
      return;
    }
    case "filtered":
      out.push(text(evaluate(statement.filter, scope, rendered(statement.body, new Scope(scope)))));
      return;
    case "with": {
      const inner = new Scope(scope);
      for (const { target, value } of statement.sets) assign(target, evaluate(value, scope), inner);
      return run(statement.body, inner, out);
    }
    case "generation":
      return run(statement.body, new Scope(scope), out);
    default:
      return statement.type;
  }
}

function assign(target: Expression, value: Value, scope: Scope): void {
  if (target.type === "name") scope.set(target.name, value);
  else if (target.type === "tuple") {
    const values = iterate(value);
    if (values.length !== target.items.length) {
      throw new JinjaError(`${values.length} values for ${target.items.length} names`);
    }
    target.items.forEach((one, i) => assign(one, values[i], scope));
  } else if (target.type === "attribute") {
    const object = evaluate(target.object, scope);
    if (!(object instanceof Namespace)) throw new JinjaError("cannot assign attribute on non-namespace object");
    object.attributes.set(target.name, value);
  }
}

/** What `loop` stands for inside a loop. */
class Loop implements Attributes {
  #at = 0;
  #seen: Value[] | undefined;
  readonly #items: readonly Value[];
  readonly #depth: number;

  constructor(items: readonly Value[], depth: number) {
    this.#items = items;
    this.#depth = depth;
  }

  go(at: number): void {
    this.#at = at;
  }

  attribute(name: string): Value | undefined {
    const at = this.#at, { length } = this.#items;
    switch (name) {
      case "index":
        return at + 1;
      case "index0":
        return at;
      case "revindex":
        return length - at;
      case "revindex0":
        return length - at - 1;
      case "first":
        return at === 0;
      case "last":
        return at === length - 1;
      case "length":
        return length;
      case "depth":
        return this.#depth + 1;
      case "depth0":
        return this.#depth;
      case "previtem":
        return at > 0 ? this.#items[at - 1] : new Undefined("there is no previous item");
      case "nextitem":
        return at + 1 < length ? this.#items[at + 1] : new Undefined("there is no next item");
      case "cycle":
        return (values) => values[at % values.length];
      case "changed":
        return (values) => {
          const changed = this.#seen === undefined || !equal(this.#seen, values);
          this.#seen = values;
          return changed;
        };
    }
    return undefined;
  }
}

function loop(statement: Statement & { type: "for" }, over: Value, scope: Scope, depth: number): string {
  const { target, condition, body } = statement, out: string[] = [];
  const items = iterate(over).filter((value) => {
    if (!condition) return true;
    const inner = new Scope(scope);
    assign(target, value, inner);
    return truth(evaluate(condition, inner));
  });
  if (items.length === 0) return rendered(statement.otherwise, new Scope(scope));
  const state = new Loop(items, depth);
  const again: Callable = ([values]) => loop(statement, values, scope, depth + 1);
  // `loop` is called in a recursive loop, and read everywhere.
  const loopValue: Value = statement.recursive
    ? Object.assign(again, { attribute: (name: string) => state.attribute(name) })
    : state;
  for (const [at, value] of items.entries()) {
    const inner = new Scope(scope);
    state.go(at);
    inner.set("loop", loopValue);
    assign(target, value, inner);
    if (run(body, inner, out) === "break") break;
  }
  return out.join("");
}

function macro(what: string, parameters: readonly Parameter[], body: readonly Statement[], outer: Scope): Callable {
  const source = JSON.stringify([body, parameters]);
  const uses = (name: string): boolean => source.includes(`{"type":"name","name":"${name}"}`);
  const takesMore = uses("varargs"), takesNames = uses("kwargs");
  return (positional, named) => {
    const scope = new Scope(outer), rest = new Map(named), pending: Parameter[] = [];
    const caller = rest.get("caller");
    if (!parameters.some(({ name }) => name === "caller")) rest.delete("caller");
    scope.set("caller", caller ?? new Undefined("'caller'"));
    parameters.forEach((parameter, i) => {
      const value = i < positional.length ? positional[i] : rest.get(parameter.name);
      if (i >= positional.length) rest.delete(parameter.name);
      scope.set(
        parameter.name,
        value !== undefined ? value : new Undefined(`parameter '${parameter.name}' was not provided, it`),
      );
      if (value === undefined && parameter.missing) pending.push(parameter);
    });
    for (const { name, missing } of pending) scope.set(name, evaluate(missing!, scope));
    const more = positional.slice(parameters.length);
    if (more.length > 0 && !takesMore) {
      throw new JinjaError(`${what} takes not more than ${parameters.length} argument(s)`);
    }
    if (rest.size > 0 && !takesNames) {
      throw new JinjaError(`${what} takes no keyword argument '${[...rest.keys()][0]}'`);
    }
    scope.set("varargs", Tuple.from(more));
    scope.set("kwargs", new Map(rest));
    return rendered(body, scope);
  };
}

function given(call: Arguments, scope: Scope): { positional: Value[]; named: Map<string, Value> } {
  const named = new Map<string, Value>();
  const positional = call.positional.flatMap(({ value, spread }) => {
    const one = evaluate(value, scope);
    return spread ? iterate(one) : [one];
  });
  for (const { name, value } of call.named) {
    const one = evaluate(value, scope);
    if (name !== undefined) named.set(name, one);
    else if (one instanceof Map) { for (const [key, item] of one) named.set(text(key), item); }
    else throw new JinjaError(`argument after ** must be a mapping, not ${typeName(one)}`);
  }
  return { positional, named };
}

function called(callee: Value, positional: Value[], named: Map<string, Value>): Value {
  if (callee instanceof Undefined) throw undefinedError(callee);
  if (typeof callee !== "function") throw new JinjaError(`'${typeName(callee)}' object is not callable`);
  return callee(positional, named);
}

/** An expression's value. `subject` is what a filter without its own subject works on. */
function evaluate(node: Expression, scope: Scope, subject?: Value): Value {
  switch (node.type) {
    case "constant":
      return node.float ? float(node.value as number) : node.value;
    case "name":
      return scope.get(node.name);
    case "list":
      return node.items.map((one) => evaluate(one, scope));
    case "tuple":
      return Tuple.from(node.items, (one) => evaluate(one, scope));
    case "dict":
      return new Map(node.items.map(([key, value]) => [keyOf(evaluate(key, scope)), evaluate(value, scope)]));
    case "attribute":
      return attribute(evaluate(node.object, scope), node.name);
    case "item":
      return item(evaluate(node.object, scope), evaluate(node.key, scope));
    case "slice":
      return slice(evaluate(node.object, scope), node.bounds.map((bound) => bound && evaluate(bound, scope)));
    case "call": {
      const callee = evaluate(node.callee, scope), { positional, named } = given(node.given, scope);
      return called(callee, positional, named);
    }
    case "filter": {
      const value = node.subject ? evaluate(node.subject, scope, subject) : subject!;
      const { positional, named } = given(node.filter, scope);
      return filterOf(node.filter.name)(value, new Given(positional, named));
    }
    case "test": {
      const test = testOf(node.test.name), value = evaluate(node.subject, scope);
      return test(value, given(node.test, scope).positional) !== node.negated;
    }
    case "if":
      if (truth(evaluate(node.test, scope))) return evaluate(node.then, scope);
      return node.otherwise ? evaluate(node.otherwise, scope) : new Undefined("the value of an if without else");
    case "unary":
      return unary(node.operator, evaluate(node.operand, scope));
    case "binary":
      return binary(node, scope);
    case "compare":
      return compared(node, scope);
  }
}

function unary(operator: string, value: Value): Value {
  if (operator === "not") return !truth(value);
  if (value instanceof Undefined) throw undefinedError(value);
  const number = numeric(value);
  if (number === undefined) throw new JinjaError(`bad operand type for unary ${operator}: '${typeName(value)}'`);
  const result = operator === "-" ? -number : number;
  return isFloat(value) ? float(result) : result + 0;
}

function binary({ operator, left, right }: Expression & { type: "binary" }, scope: Scope): Value {
  const first = evaluate(left, scope);
  if (operator === "and") return truth(first) ? evaluate(right, scope) : first;
  if (operator === "or") return truth(first) ? first : evaluate(right, scope);
  const second = evaluate(right, scope);
  return operator === "~" ? text(first) + text(second) : arithmetic(operator, first, second);
}

function compared({ first, rest }: Expression & { type: "compare" }, scope: Scope): boolean {
  let left = evaluate(first, scope);
  return rest.every(({ operator, right: node }) => {
    const right = evaluate(node, scope), holds = holdsFor(operator, left, right);
    left = right;
    return holds;
  });
}

function holdsFor(operator: string, left: Value, right: Value): boolean {
  switch (operator) {
    case "==":
      return equal(left, right);
    case "!=":
      return !equal(left, right);
    case "in":
      return contains(right, left);
    case "not in":
      return !contains(right, left);
    case "<":
      return order(left, right, operator) < 0;
    case "<=":
      return order(left, right, operator) <= 0;
    case ">":
      return order(left, right, operator) > 0;
    default:
      return order(left, right, operator) >= 0;
  }
}
