/**
 * How far a call is read ahead of whoever takes its messages. grpc-js itself reads sixteen messages ahead, whatever their size, which for
 * answers that nobody takes comes to megabytes each. This lets through so many, and each further one when one has been taken; what
 * waits behind it is held back by the flow control of HTTP/2.
 */
import { InterceptingCall, type Interceptor } from '@grpc/grpc-js'

export class MessagesAhead {
  #left: number
  #letThrough: (() => void) | undefined

  /** @param limit messages that have been let through and not been taken, at most; 1 or more */
  constructor(limit: number) {
    this.#left = limit
  }

  /** For the one call that is meant. */
  readonly interceptor: Interceptor = (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start: (metadata, _listener, next) => {
        next(metadata, {
          // A call asks for its next message when it has been given the one before, so that no two wait here.
          onReceiveMessage: (message, give) => {
            if (this.#left > 0) {
              this.#left--
              give(message)
            } else this.#letThrough = () => give(message)
          }
        })
      }
    })

  /** A message has been taken. */
  taken(): void {
    const letThrough = this.#letThrough
    this.#letThrough = undefined
    if (letThrough) letThrough()
    else this.#left++
  }
}
