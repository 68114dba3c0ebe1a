/**
 * A statement whose text is put together once, and not each time that it is run: to build a long one
 * costs more than to send it and read the answer.
 *
 * Reads: how a statement is built, which depends on nothing but its context.
 * Feeds: the statements of instances, channels, events, queues and the outbox.
 * Guarantees: the same as if it were built anew for each input.
 *
 * @since 0.1.0
 */
import * as Effect from "effect/Effect"
import type { Statement } from "effect/sql/Statement"
import type { Rows, StatementContext } from "./PgStatements.ts"

/** A parameter that is read from the input. */
class Read<Input> {
  readonly get: (input: Input) => unknown

  constructor(get: (input: Input) => unknown) {
    this.get = get
  }
}

type Compiled = ReturnType<Statement<unknown>["compile"]>

/** Has in the text what the context says, and each parameter of the input once: fewer are sent. */
const folded = ([text, parameters]: Compiled): Compiled => {
  const kept: Array<unknown> = []
  const place = (parameter: unknown): string => {
    if (typeof parameter === "string") return `'${parameter.replaceAll("'", "''")}'`
    if (typeof parameter === "boolean") return `${parameter}`
    const at = kept.indexOf(parameter)
    return `$${at < 0 ? kept.push(parameter) : at + 1}`
  }
  return [text.replace(/\$(\d+)/g, (_, number) => place(parameters[number - 1])), kept]
}

/**
 * Makes a statement of a context and an input. What is built may differ by the context only; what
 * the input decides are parameters, named by `read`.
 *
 * @since 0.1.0
 * @category constructors
 */
export const make = <Input, A>(
  build: (context: StatementContext, read: <V>(get: (input: Input) => V) => V) => Rows<A>
): ((context: StatementContext, input: Input) => Rows<A>) => {
  const known = new WeakMap<StatementContext, Compiled>()
  const compile = (context: StatementContext) => {
    const built = build(context, (get) => new Read(get) as never)
    const compiled = folded((built as unknown as Statement<unknown>).compile())
    known.set(context, compiled)
    return compiled
  }
  return (context, input) => {
    const [text, parameters] = known.get(context) ?? compile(context)
    return context.query(
      text,
      parameters.map((parameter) => (parameter instanceof Read ? parameter.get(input) : parameter))
    ) as Rows<A>
  }
}

/**
 * Makes a statement of a context and the rows of a batch, whose parameters are columns: arrays that
 * the statement unnests.
 *
 * @since 0.1.0
 * @category constructors
 */
export const batch = <Row, A>(
  build: (
    context: StatementContext,
    column: <V>(get: (row: Row) => V) => ReadonlyArray<V>
  ) => Rows<A>
): ((context: StatementContext, rows: ReadonlyArray<Row>) => Rows<A>) =>
  make((context, read) => build(context, (get) => read((rows) => rows.map(get))))

/**
 * Makes a statement of the rows of a batch from one for a lone row and one for many. Somebody waits for
 * the answer to a lone row, and most of what a batch costs there is starting its plan. The lone
 * statement answers with one row where what it was for is done, else with none, and has done nothing:
 * then the other says why. It is not asked where nobody is to wait for what others have locked, nor for
 * a row that it is not `meant` for.
 *
 * @since 0.1.0
 * @category constructors
 */
export const lone =
  <Row, A>(
    one: (context: StatementContext, row: Row) => Rows<A>,
    many: (context: StatementContext, rows: ReadonlyArray<Row>) => Rows<A>,
    meant: (row: Row) => boolean = () => true
  ) =>
  (context: StatementContext, rows: ReadonlyArray<Row>): Rows<A> => {
    const [first, ...more] = rows
    return first === undefined || more.length > 0 || !context.wait || !meant(first)
      ? many(context, rows)
      : Effect.flatMap(one(context, first), (answers) =>
          answers.length === 0 ? many(context, rows) : Effect.succeed(answers)
        )
  }
