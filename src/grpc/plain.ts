/**
 * Messages of our own services as plain objects, by what their .proto file declares:
 *
 *     uint64, int64                  number; beyond 2^53 it is refused
 *     uint64 [jstype = JS_STRING]    string of digits: an id that may need all of its 64 bits
 *     enum                           its word: 'read-write' for POOL_STATE_READ_WRITE
 *     message, repeated, others      as in protobuf, without protobuf's own fields; what is not set is left out
 *
 * Agent and commands work with the plain ones, and only this file knows what stands in a message in their place.
 */
import {
  create,
  type DescEnum,
  type DescField,
  type DescMessage,
  type Message,
  type MessageInitShape,
  type MessageShape,
  ScalarType
} from '@bufbuild/protobuf'
import type { PoolState, VolumeKind, WhenFull } from './generated/deltamapper/v1/admin_pb.ts'

/** POOL_STATE_READ_WRITE is READ_WRITE in generated code, and 'read-write' here. */
type Word<Name> = Name extends `${infer First}_${infer Rest}`
  ? `${Lowercase<First>}-${Word<Rest>}`
  : Lowercase<Name & string>

/**
 * Fields that hold an enumeration, by message. A type of numbers does not tell which it is; one that is not listed has
 * no plain type.
 */
interface EnumFields {
  'deltamapper.v1.Pool': { state: Word<keyof typeof PoolState>; whenFull: Word<keyof typeof WhenFull> }
  'deltamapper.v1.Volume': { kind: Word<keyof typeof VolumeKind> }
  'deltamapper.v1.CreatePoolRequest': { whenFull: Word<keyof typeof WhenFull> }
}

type EnumsOf<M> = M extends Message<infer Name> ? (Name extends keyof EnumFields ? EnumFields[Name] : unknown) : never

/** The plain object of a message, or what stands in it for one of its values. */
export type Plain<T> = T extends bigint
  ? number
  : T extends readonly (infer Each)[]
    ? Plain<Each>[]
    : T extends Message
      ? {
          [Field in keyof T as Exclude<Field, keyof Message>]: Field extends keyof EnumsOf<T>
            ? EnumsOf<T>[Field]
            : Plain<Exclude<T[Field], undefined>>
        }
      : T extends number
        ? number extends T
          ? number
          : never
        : T

/** A count that no number holds exactly, or that is none: below 0, or a fraction. */
export class CountBeyond extends RangeError {
  /** As in the .proto file: size_bytes. */
  readonly field: string
  readonly digits: string

  constructor(field: string, digits: string) {
    super(`${field} is ${digits}, no whole number from 0 to 2^53 - 1`)
    this.field = field
    this.digits = digits
  }
}

/** @throws CountBeyond */
export function toPlain<Desc extends DescMessage>(
  schema: Desc,
  message: MessageShape<Desc>
): Plain<MessageShape<Desc>> {
  return plainMessage(schema, message) as Plain<MessageShape<Desc>>
}

/**
 * The other way. What is left out is not set, or has protobuf's default.
 *
 * @throws CountBeyond; RangeError for a word that the enumeration does not have, a defect of whoever made the object
 */
export function fromPlain<Desc extends DescMessage>(
  schema: Desc,
  plain: Plain<MessageShape<Desc>>
): MessageShape<Desc> {
  return create(schema, messageInit(schema, plain) as MessageInitShape<Desc>)
}

function plainMessage(schema: DescMessage, message: object): object {
  return eachField(schema, message, (field, value) => {
    if (isLong(field)) {
      if (Number.isSafeInteger(Number(value))) return Number(value)
      throw new CountBeyond(field.name, String(value))
    }
    if (field.message) return plainMessage(field.message, value as object)
    return field.enum ? wordOf(field.enum, value as number) : value
  })
}

function messageInit(schema: DescMessage, plain: object): object {
  return eachField(schema, plain, (field, value) => {
    if (isLong(field)) {
      if (Number.isInteger(value) && (value as number) >= 0) return BigInt(value as number)
      throw new CountBeyond(field.name, String(value))
    }
    if (field.message) return messageInit(field.message, value as object)
    return field.enum ? numberOf(field.enum, value as string) : value
  })
}

/** @param convert takes one value, which is never undefined; of a repeated field, each in turn */
function eachField(schema: DescMessage, from: object, convert: (field: DescField, value: unknown) => unknown): object {
  const made: Record<string, unknown> = {}
  for (const field of schema.fields) {
    const value = (from as Record<string, unknown>)[field.localName]
    if (value === undefined) continue
    made[field.localName] = Array.isArray(value) ? value.map((each) => convert(field, each)) : convert(field, value)
  }
  return made
}

const LONGS: readonly (ScalarType | undefined)[] = [
  ...[ScalarType.INT64, ScalarType.UINT64, ScalarType.SINT64, ScalarType.FIXED64, ScalarType.SFIXED64]
]

/** Whether values of a field are bigints. */
function isLong(field: DescField): boolean {
  return LONGS.includes(field.scalar) && !('longAsString' in field && field.longAsString)
}

/** One of a newer version is its number. */
function wordOf(desc: DescEnum, value: number): string {
  return desc.value[value]?.localName.toLowerCase().replaceAll('_', '-') ?? String(value)
}

function numberOf(desc: DescEnum, word: string): number {
  const value = desc.values.find(({ number }) => wordOf(desc, number) === word)
  if (value) return value.number
  throw new RangeError(`${word} is no ${desc.name}`)
}
