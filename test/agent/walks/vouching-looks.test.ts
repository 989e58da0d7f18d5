import test from 'ava'
import { VouchingLooks } from '../../../src/agent/walks/vouching-looks.ts'

/** Looks by a clock that stands until somebody sets it; a look takes so long, and reads something. */
function looksTaking(milliseconds: number) {
  const state = { now: 1000, reads: 0, looks: 0, fails: false }
  const look = async () => {
    state.looks++
    state.now += milliseconds
    state.reads++
    if (state.fails) throw new Error('it is gone')
  }
  const looks = new VouchingLooks(
    look,
    () => state.reads,
    () => state.now
  )
  return { state, vouch: async () => looks.vouch() }
}

test('one look vouches for 50 ms from its beginning, not from its end', async (t) => {
  const { state, vouch } = looksTaking(20)
  await vouch()
  t.is(state.looks, 1)
  state.now = 1049
  await vouch()
  t.is(state.looks, 1)
  state.now = 1050
  await vouch()
  t.is(state.looks, 2)
})

test('a look that takes longer vouches for the message it was taken for alone', async (t) => {
  const { state, vouch } = looksTaking(50)
  await vouch()
  await vouch()
  t.is(state.looks, 2)
})

test('it does not vouch for what was read after it', async (t) => {
  const { state, vouch } = looksTaking(0)
  await vouch()
  state.reads++
  await vouch()
  t.is(state.looks, 2)
  await vouch()
  t.is(state.looks, 2)
})

test('a look that fails vouches for nothing', async (t) => {
  const { state, vouch } = looksTaking(0)
  state.fails = true
  await t.throwsAsync(vouch)
  await t.throwsAsync(vouch)
  t.is(state.looks, 2)
})
