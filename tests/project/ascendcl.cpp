/*
 * Compiles only if ascend/acl.h agrees with AscendCL's own headers: names, prototypes, layouts and numbers.
 * scripts/check_ascendcl.py fetches these, and compiles this for each architecture.
 */
#include <stddef.h>
#include <stdint.h>

/* The functions that it declares besides are of no interest here, nor is what it includes. */
namespace kvferry {
#include "../../ascend/acl.h"
}
#include <acl/acl_rt.h>
#include <acl/error_codes/rt_error_codes.h>

/* Of <type_traits> what is used here: the C++ library of the compiler would be built for each architecture first. */
template <bool Value>
struct truth {
    static constexpr bool value = Value;
};
template <class, class>
struct same : truth<false> {};
template <class Type>
struct same<Type, Type> : truth<true> {};

/* Whether a type of ours may stand for AscendCL's: it is the same one, an int for an enumeration, or a struct's twin. */
template <class Ours, class Theirs>
struct agrees
    : truth<same<Ours, Theirs>::value || (same<Ours, int>::value && __is_enum(Theirs) && sizeof(Theirs) == sizeof(int))> {
};
template <class Ours, class Theirs>
struct agrees<Ours *, Theirs *> : agrees<Ours, Theirs> {};
template <>
struct agrees<void, void> : truth<true> {};
template <>
struct agrees<const void, const void> : truth<true> {};
template <>
struct agrees<kvferry::acl_location, aclrtMemLocation> : truth<true> {};
template <>
struct agrees<kvferry::acl_attributes, aclrtPtrAttributes> : truth<true> {};
template <>
struct agrees<kvferry::acl_batch_attributes, aclrtMemcpyBatchAttr> : truth<true> {};

template <class...>
struct all : truth<true> {};
template <class First, class... Others>
struct all<First, Others...> : truth<First::value && all<Others...>::value> {};

template <class...>
struct list {};
template <bool SameNumber, class Ours, class Theirs>
struct each_agrees : truth<false> {};
template <class... Ours, class... Theirs>
struct each_agrees<true, list<Ours...>, list<Theirs...>> : all<agrees<Ours, Theirs>...> {};

template <class Result, class... Ours, class Answer, class... Theirs>
struct agrees<Result (*)(Ours...), Answer (*)(Theirs...)>
    : truth<agrees<Result, Answer>::value &&
            each_agrees<sizeof...(Ours) == sizeof...(Theirs), list<Ours...>, list<Theirs...>>::value> {};

#define PROTOTYPE(type, name, parameters)                                                                              \
    static_assert(agrees<decltype(kvferry::acl::name), decltype(&::name)>::value, "the prototype of " #name);
ACL_FUNCTIONS(PROTOTYPE, PROTOTYPE)

#define LAYOUT(ours, theirs) static_assert(sizeof(kvferry::ours) == sizeof(theirs), "the size of " #theirs)
#define PLACE(ours, member, theirs, their_member)                                                                      \
    static_assert(offsetof(kvferry::ours, member) == offsetof(theirs, their_member) &&                                 \
                      sizeof(kvferry::ours::member) == sizeof(theirs::their_member),                                   \
                  "the place of " #their_member " in " #theirs)

LAYOUT(acl_location, aclrtMemLocation);
PLACE(acl_location, id, aclrtMemLocation, id);
PLACE(acl_location, type, aclrtMemLocation, type);

LAYOUT(acl_attributes, aclrtPtrAttributes);
PLACE(acl_attributes, location, aclrtPtrAttributes, location);
PLACE(acl_attributes, page_size, aclrtPtrAttributes, pageSize);
PLACE(acl_attributes, reserved, aclrtPtrAttributes, rsv);

LAYOUT(acl_batch_attributes, aclrtMemcpyBatchAttr);
PLACE(acl_batch_attributes, to, aclrtMemcpyBatchAttr, dstLoc);
PLACE(acl_batch_attributes, from, aclrtMemcpyBatchAttr, srcLoc);
PLACE(acl_batch_attributes, reserved, aclrtMemcpyBatchAttr, rsv);

#define NUMBER(ours, theirs) static_assert(int(kvferry::ours) == int(theirs), "the number " #theirs)

NUMBER(ACL_SUCCESS, ::ACL_SUCCESS);
NUMBER(ACL_REPEATED_INITIALIZATION, ACL_ERROR_REPEAT_INITIALIZE);
NUMBER(ACL_NO_CONTEXT, ACL_ERROR_RT_CONTEXT_NULL);
NUMBER(ACL_UNSUPPORTED, ACL_ERROR_RT_FEATURE_NOT_SUPPORT);
NUMBER(ACL_STREAM_TIMEOUT, ACL_ERROR_RT_STREAM_SYNC_TIMEOUT);
NUMBER(ACL_EVENT_TIMEOUT, ACL_ERROR_RT_EVENT_SYNC_TIMEOUT);
NUMBER(ACL_HUGE_PAGES_FIRST, ACL_MEM_MALLOC_HUGE_FIRST);
NUMBER(ACL_HOST_TO_DEVICE, ACL_MEMCPY_HOST_TO_DEVICE);
NUMBER(ACL_DEVICE_TO_HOST, ACL_MEMCPY_DEVICE_TO_HOST);
NUMBER(ACL_DEVICE_TO_DEVICE, ACL_MEMCPY_DEVICE_TO_DEVICE);
NUMBER(ACL_MEMORY_HOST, ACL_MEM_LOCATION_TYPE_HOST);
NUMBER(ACL_MEMORY_DEVICE, ACL_MEM_LOCATION_TYPE_DEVICE);
NUMBER(ACL_MEMORY_UNREGISTERED, ACL_MEM_LOCATION_TYPE_UNREGISTERED);
/* ACL_MEMORY_MANAGED, 3, is not in these headers, which leave the number out. */
NUMBER(ACL_MEMORY_HOST_NUMA, ACL_MEM_LOCATION_TYPE_HOST_NUMA);
