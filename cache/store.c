/* SPDX-License-Identifier: Apache-2.0 */
#include "cache/store.h"

void qf_store_close(qf_store *store)
{
    if (store != NULL)
        store->ops->close(store);
}
