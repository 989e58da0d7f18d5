/**
 * How far a call is read ahead of its consumer. grpc-js itself reads sixteen messages ahead, of any size, which comes
 * to megabytes for each unread answer. This lets a few through, and a further one when one has been taken. HTTP/2's
 * flow control holds back what waits behind.
 */
import { InterceptingCall, type Interceptor } from '@grpc/grpc-js'

export class MessagesAhead {
  #left: number
  #letThrough: (() => void) | undefined

  /** @param limit the most messages that have been let through and not been taken; 1 or more */
  constructor(limit: number) {
    this.#left = limit
  }

  /** For the one call that is meant. */
  readonly interceptor: Interceptor = (options, nextCall) =>
    new InterceptingCall(nextCall(options), {
      start: (metadata, _listener, next) => {
        next(metadata, {
          // A call asks for its next message when it got the one before, so no two wait here.
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
